# One static binary in an otherwise empty image: no shell, no package manager,
# nothing to patch but the binary. Its health check is `jetpost health`.

FROM golang:1.26.8 AS build
WORKDIR /src

# The modules come first: they change more rarely than the code.
COPY go.mod go.sum ./
RUN go mod download

COPY . .
# What `jetpost version` says: the context has no repository. They stand after the
# modules, which they would have fetched again.
ARG VERSION=devel
ARG COMMIT=
ARG DATE=
RUN variables=github.com/jetpost/jetpost/internal/app && \
    CGO_ENABLED=0 go build -trimpath -tags timetzdata \
    -ldflags="-s -w -X $variables.version=$VERSION -X $variables.commit=$COMMIT -X $variables.date=$DATE" \
    -o /out/jetpost ./cmd/jetpost

# An empty image has no place to write. This one belongs to the user below, and a
# volume mounted on it for the first time takes over its owner.
RUN mkdir -p /out/data && chown -R 65532:65532 /out/data

FROM scratch
ARG VERSION=devel
LABEL org.opencontainers.image.title="jetpost" \
      org.opencontainers.image.description="Publishes posts and threads on X from NATS JetStream, each exactly once" \
      org.opencontainers.image.source="https://github.com/jetpost/jetpost" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"

COPY --from=build /etc/ssl/certs/ca-certificates.crt /etc/ssl/certs/
COPY --from=build /out/ /

# Numeric, so that Kubernetes can see that it is not root.
USER 65532:65532
# That user has no home. The lifeboat is /data/jetpost/lifeboat, and media on their
# way lie in /data, each gone with its worker.
ENV XDG_DATA_HOME=/data TMPDIR=/data
WORKDIR /data
ENTRYPOINT ["/jetpost"]
