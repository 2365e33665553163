# botproxy as an ordinary user (uid 65532) on ports 8443 and 8080; publish them as 443 and 80:
#
#   docker build -t botproxy .
#   docker run --read-only --cap-drop ALL -p 443:8443 -p 80:8080 \
#     -v ./botproxy.yaml:/etc/botproxy/botproxy.yaml:ro -v ./certificates:/certificates:ro botproxy
#
# The key must be readable by uid 65532, or by whom `--user` names: any uid and gid will do. Every key of
# the file has a variable as well (BOTPROXY_CERTIFICATES__0__CHAIN, ...), and no file is needed.
# Where botproxy listens is said by BOTPROXY_LISTEN and BOTPROXY_PLAIN_LISTEN, not by the file.
# configs/container has a compose file with a bot and certbot, and a bot in the same container.

ARG BASE=python:3.14-slim

FROM ${BASE} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends binutils
WORKDIR /source
COPY . .
# Half of what the wheels bring are symbols for debuggers and sources in C.
RUN python3 -m venv --without-pip /opt/botproxy \
    && python3 -m pip --python /opt/botproxy/bin/python3 install --no-cache-dir --no-compile . \
    && find /opt/botproxy -name '*.so' -exec strip --strip-unneeded {} + \
    && find /opt/botproxy \( -name '*.py[xi]' -o -name '*.pxd' -o -name '*.h' \) -delete

FROM ${BASE} AS system
COPY --from=build /opt/botproxy /opt/botproxy
# Nobody installs anything in a running container, and nobody becomes somebody else there.
RUN site=$(dirname "$(python3 -c 'import pip; print(pip.__path__[0])')") \
    && rm -rf "$site"/pip* "$site"/setuptools* "$site"/wheel* "$site"/pkg_resources "$(dirname "$(command -v pip3)")"/pip* \
    && cd "$(python3 -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')" \
    && rm -rf ensurepip idlelib lib2to3 pydoc_data test tkinter turtledemo \
    && rm -rf /var/lib/apt/lists /var/cache/apt /var/cache/debconf /var/log/* ~/.cache \
    && find / -xdev -type f -perm /6000 -exec chmod a-s {} +
# Byte code of what is used and of nothing else: a health check is a process every ten seconds.
RUN find / -xdev -name __pycache__ -prune -exec rm -rf {} + \
    && env -u PYTHONDONTWRITEBYTECODE /opt/botproxy/bin/python3 -c \
       'import botproxy.cli.serve, botproxy.cli.run, botproxy.cli.health, botproxy.cli.cert, encodings.idna'
# A file that says nothing new: another can be mounted in its place, and variables alone are enough.
RUN mkdir /etc/botproxy && echo 'log: { access: json }' > /etc/botproxy/botproxy.yaml \
    # Not the whole of its bin: python3 is the base's, for a bot that lives here as well.
    && ln -s /opt/botproxy/bin/botproxy /usr/local/bin/botproxy \
    # Like /tmp: whoever runs botproxy makes a directory (0700) in it, with whatever uid and gid.
    && install -d -m 1777 /state

# One layer: what was removed takes no room.
FROM scratch
COPY --from=system / /
ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    LANG=C.UTF-8 \
    XDG_STATE_HOME=/state \
    BOTPROXY_CONFIG=/etc/botproxy/botproxy.yaml \
    BOTPROXY_LISTEN='[{address: ":8443"}]' \
    BOTPROXY_PLAIN_LISTEN='[{address: ":8080"}]'
# The last good certificate and the admin socket, in /state/botproxy; writable with --read-only, too.
VOLUME /state
USER 65532:65532
EXPOSE 8443 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=15s --retries=3 CMD ["botproxy", "health"]
ENTRYPOINT ["botproxy"]
CMD ["serve"]
