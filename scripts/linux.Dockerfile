# A Debian with all that the tests need, for scripts/linux. Its context is scripts/.
FROM docker.io/library/golang:1.26-bookworm AS go

FROM docker.io/library/node:24-bookworm
RUN apt-get update \
    && apt-get install -y --no-install-recommends chromium podman buildah crun netavark aardvark-dns iptables \
    && rm -rf /var/lib/apt/lists/*
COPY test-tools /usr/local/bin/
RUN test-tools
COPY --from=go /usr/local/go/ /usr/local/go/
ENV PATH=/usr/local/go/bin:$PATH GOPATH=/go
RUN git config --system safe.directory '*'
WORKDIR /src
# It reaps what is orphaned, and test-tools has installed it for podman.
ENTRYPOINT ["catatonit", "--"]
