//! X.509-SVIDs: identities, checks, loading, reloading, issuing.
