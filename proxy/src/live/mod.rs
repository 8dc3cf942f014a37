//! What is alive: the state that the control thread publishes, and the
//! connections that are open under it.

mod conn;
mod dials;
mod judged;
mod published;
mod registry;
#[cfg(test)]
pub(crate) mod testing;

pub use conn::{Conn, Stage, Tls};
pub use dials::{Dial, Dialled, Dials};
pub use judged::{Facts, Told};
pub use published::{AsOpened, Host, HostAddresses, LocalNet, Published, ResolveRequest, Shared};
pub use registry::{Guard, HandshakeSlot, Registry};
