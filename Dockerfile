# botproxy as an ordinary user (uid 65532) on ports 8443 and 8080; publish them as 443 and 80:
#
#   docker build -t botproxy .
#   docker run -p 443:8443 -p 80:8080 -v /etc/botproxy:/etc/botproxy:ro botproxy
#
# /etc/botproxy holds botproxy.yaml, the certificate and its key, the key readable by uid 65532 alone.

ARG BASE=python:3.14-slim

FROM ${BASE} AS build
WORKDIR /source
RUN python3 -m venv /opt/botproxy
COPY . .
RUN /opt/botproxy/bin/pip install --no-cache-dir . \
    && /opt/botproxy/bin/pip uninstall --yes --quiet pip

FROM ${BASE}
# botproxy resolves its state directory to /var/lib/botproxy from this.
ENV PATH=/opt/botproxy/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    XDG_STATE_HOME=/var/lib
COPY --from=build /opt/botproxy /opt/botproxy
RUN install -d -m 0700 -o 65532 -g 65532 /var/lib/botproxy
USER 65532:65532
EXPOSE 8443 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["botproxy", "health"]
ENTRYPOINT ["botproxy"]
CMD ["serve", "--config", "/etc/botproxy/botproxy.yaml", "--listen", ":8443", "--plain-listen", ":8080"]
