//! X.509-SVIDs: identities, checks, loading, reloading, issuing.
//!
//! No sockets and no threads of its own, but for the file watch. What a peer may claim is decided
//! in [`verify`], against the grammar in [`spiffe`], and every "no" is a [`refusal::PeerRefusal`]
//! with its own label. [`load`] turns files into a [`generation::TlsGeneration`]: all that a
//! handshake needs, built once and then only read. [`reload`] makes the next one when the files
//! change, and keeps the last good one when they are broken.

mod bundles;
mod dates;
mod files;
pub mod forge;
mod keys;
mod leaf;
mod list_report;
mod path;
mod pem;
mod seen;

pub mod corpus;
pub mod expiry;
pub mod generation;
pub mod inspect;
pub mod issue;
pub mod load;
pub mod received;
pub mod refusal;
pub mod reload;
pub mod revocation;
pub mod revoke;
pub mod spiffe;
pub mod stillness;
pub mod verify;
pub mod watch;
