"""`python -m botproxy` is `botproxy`."""

import sys

from botproxy.cli.main import main

sys.exit(main())
