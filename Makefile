# make run     set everything up and start the server on 127.0.0.1:3001, on a scripted model;
#              REAL=1 for the real one, with an agent that may do here whatever you may
# make check   format, vet, lint, the unit tests and those of the server, in a minute
# make test    everything that can be checked without a container engine
# make soak    ten minutes of hostile load (SOAK=20m for more), a thousand commands whose clients
#              are cut off, and make long, the tests that do nothing but wait, for five minutes
# make idle    half an hour in which a started Claude Code waits
# make bump    another Claude Code, the newest or CLI=2.1.331, if the canaries hold on it
# make canary  what the server leans on of Claude Code, held with the real one
# make bench   speed and memory, for people: the numbers of a noisy machine prove nothing
# make kube    the file for Kubernetes against its schema; the tool compiles for minutes, once
.POSIX:
.PHONY: setup build run check test tools unit relay e2e canary bump lint bench soak long idle fuzz fuzz-briefly kube clean

VERSION = $$(git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME = 10m
SOAK = 10m
ROUNDS = 10
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2
ACTIONLINT = github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
KUBECTL_VALIDATE = sigs.k8s.io/kubectl-validate@v0.0.4

build:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/vm-server .
	CGO_ENABLED=0 go build -trimpath -o bin/model ./e2e

setup:
	scripts/setup

REAL =
run: setup build
	REAL=$(REAL) scripts/run

# What can be checked in a minute: neither npm, Chromium nor root is needed.
check: lint
	go test -count=1 -timeout 5m -parallel 12 -skip '^Test(Soak|Long)' . ./test

test: setup lint unit fuzz-briefly relay e2e

lint: tools
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	go vet ./...
	GOOS=darwin go vet ./...
	go run $(STATICCHECK) ./...
	go run $(ACTIONLINT)
	scripts/lint-shell

tools:
	scripts/test-tools

unit: tools
	go test -race -count=1 -timeout 10m -parallel 8 -skip '^Test(Soak|Long)' . ./test

relay:
	scripts/npm-ci examples/whatsapp-relay
	cd examples/whatsapp-relay && npm test

e2e: build
	scripts/npm-ci examples/whatsapp-relay
	go test -count=1 -timeout 20m -v -skip '^Test(Image|Soak|Long)' ./e2e

canary: setup
	go test -count=1 -timeout 5m -parallel 4 -v -run '^TestCanary' ./test ./e2e

bump:
	scripts/bump $(CLI)

bench: setup build
	go test -run '^$$' -bench Answers -benchtime 10x ./e2e
	go test -run '^$$' -bench Waiting -benchtime 1x ./e2e
	go test -run '^$$' -bench 'Command|Bare' -benchtime 1000x -count 3 ./test
	go test -run '^$$' -bench 'Flood|Stubborn|Stream|Chains' -benchtime 3x ./test
	go test -run '^$$' -bench Bodies -benchtime 1x ./test
	go test -run '^$$' -bench Forms -benchtime 1000x ./test

LONG = long
soak: setup build $(LONG)
	SOAK=$(SOAK) go test -count=1 -run '^TestSoak' -parallel 6 -v -timeout 40m ./test
	SOAK=$(SOAK) go test -count=1 -run '^TestSoak' -v -timeout 60m ./e2e

long: setup build
	go test -count=1 -run '^TestLong' -v -timeout 15m ./test ./e2e

idle: setup build
	IDLE="29m 30m30s 32m" go test -count=1 -run TestASpareThatHasWaited -parallel 3 -v -timeout 40m ./e2e

fuzz-briefly:
	$(MAKE) fuzz FUZZTIME=5s

fuzz:
	go test -run '^$$' -fuzz FuzzDecodeCommand -fuzztime $(FUZZTIME) .
	go test -run '^$$' -fuzz FuzzSplitter -fuzztime $(FUZZTIME) .

kube:
	go run $(KUBECTL_VALIDATE) --version 1.30 deploy/kubernetes.yaml

# What was built, and nothing else: no workspace, no conversation.
clean:
	rm -rf bin

# The image, built and tested with docker or podman, whichever works here.
.PHONY: image root image-test
image:
	scripts/image

# Tests give folders to the agent's user.
root:
	@[ "$$(id -u)" = 0 ] || { echo "image-test needs root: scripts/linux make image-test" >&2; exit 1; }

image-test: root setup build
	ROUNDS=$(ROUNDS) scripts/image-test
