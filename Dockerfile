# vm-server with Claude Code, Playwright MCP, Chromium, Node.js and git.
# Lines stand in the order in which they change: a change of Go code rebuilds
# two small layers.

FROM --platform=$BUILDPLATFORM docker.io/library/golang:1.26-bookworm AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN go mod download
COPY *.go ./
ARG TARGETARCH
ARG VERSION=dev
RUN CGO_ENABLED=0 GOOS=linux GOARCH=$TARGETARCH go build -trimpath -ldflags "-s -w -X main.version=$VERSION" -o /vm-server .

FROM docker.io/library/node:24-bookworm
# Debian's Chromium, as Google's has no arm64 build, without the part that draws
# windows; under the name by which programs look for it. Fonts, or pages and
# screenshots show boxes: Latin, emoji, and one face for Chinese, Japanese and Korean.
# The empty package stands for x11-utils, which Chromium's windows need; that one would
# bring Mesa and LLVM, 214 MB.
COPY image/no-x11-utils /tmp/no-x11-utils/DEBIAN/control
RUN dpkg-deb --build /tmp/no-x11-utils && dpkg --install /tmp/no-x11-utils.deb && rm -r /tmp/no-x11-utils* \
    && apt-get update && apt-get upgrade -y \
    && apt-get install -y --no-install-recommends \
        chromium-headless-shell ripgrep jq git-lfs python3-pip python3-venv \
        fonts-liberation fonts-noto-color-emoji fonts-wqy-microhei fonts-freefont-ttf fonts-noto-ui-core \
    && rm -rf /var/lib/apt/lists/* /var/log/apt /var/log/dpkg.log /var/cache/debconf \
    && ln -s chromium-headless-shell /usr/bin/chromium

# The versions are in package.json and its lock file, and nowhere else.
WORKDIR /opt/cockpit-vm
COPY package.json package-lock.json ./
RUN npm ci --no-audit --no-fund && npm cache clean --force && rm -rf /root/.npm /tmp/*

# What the agent may not change is root's; what it may is its own. The system's
# git configuration is the weakest: a user's own wins over it.
RUN git config --system safe.directory '*' \
    && git config --system user.name 'Claude Code' \
    && git config --system user.email 'claude@localhost' \
    && install -d -o node -g node /workspace \
    && install -d /etc/cockpit-vm /etc/claude-code/managed-settings.d /etc/claude-code/.claude/rules \
    && chmod 1777 /home
# The folders are made above: Docker 28.1 and newer would give a folder that COPY makes
# the mode of the file (moby/moby#49851), which closes it to the agent.
COPY --chmod=644 .mcp.json /etc/cockpit-vm/mcp.json
# A file in managed-settings.d, so that an operator's own managed-settings.json
# stands beside it.
COPY --chmod=644 image/managed-settings.json /etc/claude-code/managed-settings.d/50-cockpit-vm.json
COPY --chmod=644 image/CLAUDE.md /etc/claude-code/CLAUDE.md
COPY --chmod=755 image/as-agent image/healthcheck.sh entrypoint.sh /usr/local/bin/
COPY --chmod=644 image/agent-user.sh /usr/local/lib/
# Without LANG Chromium saves a download with an umlaut in its name as "download", and
# uploads such a file empty and without a name (measured).
ENV PATH=/opt/cockpit-vm/node_modules/.bin:$PATH \
    LANG=C.UTF-8 \
    DISABLE_AUTOUPDATER=1 \
    CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC=1 \
    VM_ADDR=:3001 \
    VM_USER=node \
    VM_WORKSPACE=/workspace \
    VM_MCP_CONFIG=/etc/cockpit-vm/mcp.json
WORKDIR /workspace
VOLUME ["/workspace", "/home"]
EXPOSE 3001
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=5s --timeout=5s --start-period=5s CMD ["healthcheck.sh"]
ENTRYPOINT ["entrypoint.sh"]
CMD ["vm-server"]
LABEL org.opencontainers.image.title="cockpit-vm" \
      org.opencontainers.image.description="Runs Claude Code for POST /command and leaves no process behind" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/node:24-bookworm"

COPY --from=build /vm-server /usr/local/bin/vm-server
ARG VERSION=dev
ARG REVISION=
ARG CREATED=
ARG SOURCE=
LABEL org.opencontainers.image.version=$VERSION \
      org.opencontainers.image.revision=$REVISION \
      org.opencontainers.image.created=$CREATED \
      org.opencontainers.image.source=$SOURCE
