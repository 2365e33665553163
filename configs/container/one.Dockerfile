# botproxy and the bot in one container: botproxy starts the bot, and starts it again when it fails.
#
#   docker build -t botproxy .
#   docker build -t bot -f configs/container/one.Dockerfile configs/container
#   docker run --read-only --cap-drop ALL -p 443:8443 -p 80:8080 -v ./certificates:/certificates:ro \
#     -e BOTPROXY_CERTIFICATES__0__CHAIN=/certificates/fullchain.pem \
#     -e BOTPROXY_CERTIFICATES__0__KEY=/certificates/privkey.pem bot
#
# When it is told to end, first the requests have timeouts.drain, then the bot has 10 s:
# docker run --stop-timeout 40, or a shorter drain.

ARG BASE=python:3.14-slim
ARG BOTPROXY=botproxy

# The base that botproxy was built on; its pip is not in botproxy's image.
FROM ${BASE} AS bot
RUN python3 -m venv /bot/venv
# COPY requirements.txt .
# RUN /bot/venv/bin/pip install --no-cache-dir -r requirements.txt

FROM ${BOTPROXY}
COPY --from=bot /bot/venv /bot/venv
COPY bot.py /bot/bot.py
ENV BOT_HOST=127.0.0.1
CMD ["run", "--", "/bot/venv/bin/python3", "/bot/bot.py"]
