"""The peers, each as its own documentation sets it up for this: one module, one configuration."""
