# Short names for common commands. scripts/ and the go command do the work, so make is
# optional.

.DEFAULT_GOAL := help
.PHONY: help bench build check demo fmt image lint quick release screenshots test tidy up down

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "%-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

bench: ## measure, on a quiet machine; the run writes docs/BENCHMARKS.md
	scripts/bench

build: ## build the static binary, bin/jetpost
	CGO_ENABLED=0 go build -trimpath -tags timetzdata -o bin/jetpost ./cmd/jetpost

check: ## run every check that a change must pass
	scripts/test

demo: ## build the binary and run its demo
	scripts/test demo

down: ## stop the compose stack and keep its data
	docker compose --profile sim down

fmt: ## format all Go files
	go tool -modfile=tools/go.mod golangci-lint fmt

image: ## build the container image, jetpost
	docker build --tag jetpost --build-arg VERSION="$$(git describe --tags --always --dirty)" \
		--build-arg COMMIT="$$(git rev-parse HEAD)" --build-arg DATE="$$(git log -1 --format=%cI)" .

lint: ## run the linters
	scripts/lint

quick: ## run the linters and most tests: some four minutes the first time
	scripts/test quick

release: ## build the files of a release, into dist/
	scripts/release

screenshots: ## take pictures of the dashboard's screens, into docs/screens
	scripts/screens

test: ## run all tests
	scripts/test unit e2e load chaos

tidy: ## tidy the module files
	go mod tidy
	go -C tools mod tidy
	go -C tools/compose mod tidy
	go -C tools/kubernetes mod tidy
	go -C tools/natscli mod tidy
	go -C tools/openapi mod tidy
	go -C tools/sbom mod tidy
	go -C bench mod tidy

up: ## start NATS, PostgreSQL and a worker
	docker compose up --build --detach
