//! Transparent mTLS sidecar proxy.
