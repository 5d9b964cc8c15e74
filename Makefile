# Everything a newcomer needs: `make demo` shows a mesh, `make test` proves this tree. Only Go, git and make are required.

GO      ?= go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
CHECK   := honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Packages that start goroutines, and so run under the race detector as well.
RACE    := ./acl/filter ./coordinator/... ./derp ./netstack ./node/...

export CGO_ENABLED ?= 0

.PHONY: build demo test paths race lint cross fuzz bench clean

build: ## bin/hedge, one static binary
	$(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/hedge ./cmd/hedge

demo: build ## a mesh of three nodes in one process, on loopback
	./bin/hedge demo

test: ## every test; those that need root or a tool say so when they skip
	$(GO) vet ./...
	$(GO) test -timeout 15m $$($(GO) list ./... | grep -v '/test/paths\|/test/bench')
	$(GO) test -timeout 15m -p 1 ./test/paths ./test/bench/... # after the others: they measure times, and want the machine for themselves

paths: ## docs/paths.md anew: every kind of NAT against every other, and what may happen meanwhile; half an hour, as root; -help tells of its sections
	$(GO) run ./test/paths -o docs/paths.md

# Fake time and the detector of Go 1.26 do not go together where two threads set timers of one bubble at once: it dies in
# runtime.(*timer).modify, having found nothing. So node/bind and node/device, where they do, have one processor at a time, and what is in real time all.
race: ## the concurrent packages under the race detector (needs a C compiler)
	CGO_ENABLED=1 $(GO) test -race -short -timeout 15m $$($(GO) list $(RACE) | grep -v '/node/bind\|/node/device')
	CGO_ENABLED=1 $(GO) test -race -short -timeout 15m -cpu 1 ./node/bind ./node/device
	CGO_ENABLED=1 $(GO) test -race -short -timeout 15m -run '^Test(Devices|SparseApart|Churn)' ./node/bind ./node/device

lint: ## gofmt, vet, staticcheck
	@test -z "$$(gofmt -l .)" || { gofmt -l .; echo 'run gofmt -w on these'; exit 1; }
	$(GO) vet ./...
	$(GO) run $(CHECK) ./...

cross: ## vet for every system that Hedge is built for
	GOOS=linux GOARCH=amd64 $(GO) vet ./...
	GOOS=linux GOARCH=arm64 $(GO) vet ./...
	GOOS=darwin GOARCH=arm64 $(GO) vet ./...
	GOOS=windows GOARCH=amd64 $(GO) vet ./...

FUZZTIME ?= 20s
fuzz: ## every fuzz target for FUZZTIME each
	@for d in $$($(GO) list -f '{{if .TestGoFiles}}{{.Dir}}{{end}}' ./...); do \
	  for f in $$(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(f \*testing.F).*/\1/p' $$d/*_test.go); do \
	    echo "== $$d $$f"; (cd $$d && $(GO) test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) .) || exit 1; done; done

bench: ## Hedge beside wireguard-go and others, in turns: about twenty minutes, or ARGS=-quick; ARGS=-help tells more; as root all of it
	$(GO) build -o bin/bench ./test/bench
	./bin/bench -json bench.json $(ARGS)

clean:
	rm -rf bin
