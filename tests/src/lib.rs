//! Pods made of network namespaces.
