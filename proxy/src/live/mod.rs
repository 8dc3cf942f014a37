//! What is alive: the state that the control thread publishes, and the
//! connections that are open under it.

mod conn;
mod dials;
mod hosts;
mod judged;
mod published;
mod registry;
#[cfg(test)]
pub(crate) mod testing;

pub use conn::{Conn, Stage, Tls};
pub use dials::{Dial, Dialled, Dials};
pub use hosts::{AsOpened, Host, HostAddresses, Known, RESOLVE_WAIT, ResolveRequest};
pub use judged::{Facts, Told};
pub use published::{LocalNet, Published, Shared};
pub use registry::{Guard, HandshakeSlot, Registry};
