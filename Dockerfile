# Pillion's images: static programs, and nothing else in them but the list of what they are made of.
#
#   docker build --target pillion-proxy -t pillion-proxy .
#   docker build --target pillion-init -t pillion-init .
#   docker build --target pillion-init-iptables -t pillion-init:iptables .
#   docker build --target pillion-certs -t pillion-certs .
#
# `make image` builds all of them, on bases that it makes itself where no registry can be reached.

# A Rust toolchain of 1.95 or later, a C compiler and a libc to link.
ARG RUST_IMAGE=rust:1.95-slim-bookworm
# A Debian for the variant of pillion-init that brings the iptables programs.
ARG DEBIAN_IMAGE=debian:bookworm-slim

FROM ${RUST_IMAGE} AS tools
RUN cargo install --quiet --locked --root /opt/tools cargo-cyclonedx@0.5.9 cargo-auditable@0.7.4

FROM ${RUST_IMAGE} AS build
COPY --from=tools /opt/tools/bin /usr/local/bin/
WORKDIR /src
COPY . .
# Two builds of one source give the same bytes: one code unit and LTO (Cargo.toml), no path of the
# builder's, no time. The linker's id of a build is a hash of its content. Another ROUND builds anew.
# The lists of what is in them lose their indentation, a quarter of their size; and relocations are
# packed (the generic ABI's DT_RELR, glibc 2.36), 0.4 MB of the proxy.
ARG ROUND=1
ENV CARGO_INCREMENTAL=0 SOURCE_DATE_EPOCH=0 \
    RUSTFLAGS="-C target-feature=+crt-static -C strip=symbols -C link-arg=-Wl,-z,pack-relative-relocs --remap-path-prefix=/src=. --remap-path-prefix=/usr/local/cargo/registry/src=."
RUN host=$(rustc -vV | sed -n 's/^host: //p') \
 && cargo auditable build --locked --release --target "$host" -p pillion-proxy -p pillion-init -p pillion-certs --bins \
 && cargo cyclonedx --quiet --format json --describe binaries --target "$host" \
 && for part in proxy:proxy init:iptables-init certs:certs; do \
      name=${part%:*}; mkdir -p "/out/$name"; \
      cp LICENSE "target/$host/release/pillion-$name" "/out/$name/"; \
      sed -z 's/\n *//g' "${part#*:}/pillion-${name}_bin.cdx.json" >"/out/$name/pillion-$name.cdx.json" || exit 1; \
    done && mkdir /out/certs/data

# What all of them say of themselves (the OCI image specification, annotations).
FROM scratch AS pillion-init
ARG VERSION=0.0.0 REVISION=unknown
LABEL org.opencontainers.image.title="pillion-init" \
      org.opencontainers.image.description="Installs Pillion's redirect rules in a pod, once" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/init/ /
# An added capability is effective for root alone.
USER 0:0
ENTRYPOINT ["/pillion-init"]

# For kernels that the netlink backend cannot serve.
FROM ${DEBIAN_IMAGE} AS pillion-init-iptables
ARG VERSION=0.0.0 REVISION=unknown
LABEL org.opencontainers.image.title="pillion-init" \
      org.opencontainers.image.description="Installs Pillion's redirect rules in a pod, once; with the iptables programs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
RUN apt-get update && apt-get install -y --no-install-recommends iptables \
 && rm -rf /var/lib/apt/lists/* /var/cache/* /var/log/*
COPY --from=build /out/init/ /
USER 0:0
ENTRYPOINT ["/pillion-init"]

# For development: makes the certificates of examples/compose.
FROM scratch AS pillion-certs
ARG VERSION=0.0.0 REVISION=unknown
LABEL org.opencontainers.image.title="pillion-certs" \
      org.opencontainers.image.description="Makes and checks X.509-SVIDs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# With a folder that a volume takes its owner from.
COPY --from=build --chown=1337:1337 /out/certs/ /
USER 1337:1337
ENTRYPOINT ["/pillion-certs"]

# The last one, hence the default of `docker build`.
FROM scratch AS pillion-proxy
ARG VERSION=0.0.0 REVISION=unknown
LABEL org.opencontainers.image.title="pillion-proxy" \
      org.opencontainers.image.description="Transparent mTLS sidecar proxy" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
COPY --from=build /out/proxy/ /
# The user whom the redirect rules let pass.
USER 1337:1337
EXPOSE 15006 15020 15021
ENTRYPOINT ["/pillion-proxy"]
