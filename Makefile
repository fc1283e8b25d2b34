# make check   a minute: format, vet, staticcheck, shellcheck, the unit tests but the long ones
# make run     set everything up and start the server on 127.0.0.1:3001
# make test    everything that can be checked without a container engine, but the long tests
# make soak    the long tests: ten minutes of hostile load, or SOAK=20m of it, and long waits
# make idle    half an hour in which a started Claude Code waits
# make bench   speed and memory, for people: the numbers of a noisy machine prove nothing
.POSIX:
.PHONY: check lint build setup run test tools unit e2e soak idle bench fuzz fuzz-briefly clean

VERSION = $$(git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME = 10m
SOAK = 10m
LONG = ^Test(Soak|Long)
STATICCHECK = honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Needs Go alone. What is not here is skipped, with the reason.
check: lint
	go test -count=1 -timeout 5m -parallel 8 -skip '$(LONG)' .

lint:
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	scripts/lint-shell

build:
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/vm-server .
	CGO_ENABLED=0 go build -trimpath -o bin/model ./e2e

setup:
	scripts/setup

run: setup build
	scripts/run

test: setup tools lint unit fuzz-briefly e2e

tools:
	scripts/test-tools

unit:
	scripts/no-skips go test -race -count=1 -timeout 20m -parallel 4 -v -skip '$(LONG)' .

e2e:
	scripts/no-skips go test -count=1 -timeout 20m -v -skip '^TestImage' ./e2e

soak:
	SOAK=$(SOAK) scripts/no-skips go test -count=1 -timeout 30m -v -run '$(LONG)' .

idle:
	IDLE="29m 30m30s 32m" scripts/no-skips go test -count=1 -timeout 40m -parallel 3 -v -run '^TestASpareThatHasWaitedAnswersUntilItIsTooOld' ./e2e

bench:
	go test -run '^$$' -bench Answers -benchtime 10x ./e2e
	go test -run '^$$' -bench Waiting -benchtime 1x ./e2e
	go test -run '^$$' -bench 'Command|Bare' -benchtime 1000x -count 3 .
	go test -run '^$$' -bench 'Flood|Stubborn|Stream' -benchtime 3x .
	go test -run '^$$' -bench Forms -benchtime 1000x .

fuzz-briefly:
	$(MAKE) fuzz FUZZTIME=5s

fuzz:
	scripts/no-skips go test -v -run '^$$' -fuzz FuzzDecodeCommand -fuzztime $(FUZZTIME) .
	scripts/no-skips go test -v -run '^$$' -fuzz FuzzSplitter -fuzztime $(FUZZTIME) .

clean:
	rm -rf bin node_modules workspace .run

# The image, built and tested with docker or podman, whichever works here.
.PHONY: image image-test
image:
	scripts/image

image-test:
	scripts/image-test
