//! nf_tables without a program: the rules of both families in one transaction, by netlink.
//!
//! The tables are those of iptables-nft (`nat` and `filter` of the families `ip` and `ip6`), and so
//! is what stands in them, so either may go on where the other has ended. Native nft tables would act
//! beside these, unseen by `iptables`.
//!
//! * [`Tables`]: what the kernel lists, in the words of `iptables-save`;
//! * [`Change`] and [`commit`]: what is to become of it ([`datagram`] shows the message);
//! * [`earlier_chains`]: chains of others that are asked before ours.
//!
//! Messages are written and read here, by hand: the crates that know nf_tables lack the
//! expressions for matches and targets of x_tables, or bind a C library.

mod decode;
mod earlier;
mod encode;
mod extension;
mod kernel;
mod socket;
mod table;
mod transaction;
mod wire;

use std::io;
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::backend::BackendError;
use crate::rules::{Family, TableName};
use encode::{MULTIPORT, OWNER, REDIRECT, REJECT, TCP};
use kernel::{
    NFNL_MSG_COMPAT_GET, NFNL_SUBSYS_NFT_COMPAT, NFNL_SUBSYS_NFTABLES, NFPROTO_IPV4, NFPROTO_IPV6,
    NFPROTO_UNSPEC, NFT_MSG_GETCHAIN, NFT_MSG_GETGEN, NFT_MSG_GETRULE, NFT_MSG_NEWGEN,
    NFTA_COMPAT_NAME, NFTA_COMPAT_REV, NFTA_COMPAT_TYPE, NFTA_GEN_ID, NFTA_RULE_TABLE, NLM_F_DUMP,
    NLM_F_REQUEST,
};
use socket::{Connection, Failure};
use transaction::{Batch, Names, Purpose};
use wire::{Malformed, Message, messages};

pub use earlier::EarlierChain;
pub use table::Tables;
pub use transaction::Change;
pub use wire::Malformed as MalformedAnswer;

/// What stands for a program in messages.
const PROGRAM: &str = "netlink";
/// The type of a chain that translates addresses.
const NAT: &str = "nat";
/// How long a change of others is followed by another try. Each takes about a millisecond, and a
/// run of `iptables` several; a machine with other things to do may break off many in a row.
const PATIENCE: Duration = Duration::from_secs(10);

fn family_number(family: Family) -> u8 {
    match family {
        Family::V4 => NFPROTO_IPV4,
        Family::V6 => NFPROTO_IPV6,
    }
}

/// The type of a message of nf_tables.
fn nf_tables(kind: u8) -> u16 {
    u16::from_be_bytes([NFNL_SUBSYS_NFTABLES, kind])
}

fn is_nf_tables(message: u16, kind: u8) -> bool {
    message == nf_tables(kind)
}

/// What the tables have. Asking creates nothing.
///
/// # Errors
/// The kernel does not serve nf_tables, or denies it, or others change the rules all the time.
pub fn read(family: Family) -> Result<Tables, BackendError> {
    let read = repeated(|| state(&Connection::open()?, &[family]));
    let (tables, _) = read.map_err(|failure| failed(failure, "the rules"))?;
    Ok(tables.into_iter().next().unwrap_or_default())
}

/// Makes both families' changes in one transaction: all of it, or nothing. A change of others
/// between reading and writing is followed by another try.
///
/// # Errors
/// As [`read`], or the kernel refuses a message; nothing has changed.
pub fn commit(changes: &[Change<'_>]) -> Result<(), BackendError> {
    let families: Vec<Family> = changes.iter().map(Change::family).collect();
    let mut names = Names::default();
    let committed = repeated(|| {
        let connection = Connection::open()?;
        let (tables, generation) = state(&connection, &families)?;
        let batch = batch(changes, &tables);
        if batch.is_empty() {
            return Ok(());
        }
        names = batch.names();
        connection.transact(batch, Purpose::Commit(generation))
    });
    committed.map_err(|failure| refused(failure, &names))
}

/// What [`commit`] would send with these changes of these tables, were they of generation 0.
#[must_use]
pub fn datagram(changes: &[Change<'_>], tables: &[Tables]) -> Vec<u8> {
    batch(changes, tables).acknowledged().finish(Purpose::Commit(0))
}

fn batch(changes: &[Change<'_>], tables: &[Tables]) -> Batch {
    let mut batch = Batch::new();
    for (change, tables) in changes.iter().zip(tables) {
        for table in tables.each() {
            batch.change(change, table);
        }
    }
    batch
}

/// Asks the kernel whether our rules can be in a family's tables, and changes nothing. It loads
/// the modules that this takes.
///
/// # Errors
/// One is missing, or the kernel denies it.
pub fn usable(family: Family) -> Result<(), BackendError> {
    let connection =
        Connection::open().map_err(|error| failed(error.into(), "a socket of netfilter's"))?;
    generation(&connection).map_err(|failure| failed(failure, "its generation"))?;
    let reject = match family {
        Family::V4 => "ipt_REJECT",
        Family::V6 => "ip6t_REJECT",
    };
    let extensions = [
        (OWNER, 0, "xt_owner"),
        (MULTIPORT, 0, "xt_multiport"),
        (TCP, 0, "xt_tcpudp"),
        (REDIRECT, 1, "xt_REDIRECT"),
        (REJECT, 1, reject),
    ];
    for ((name, revision), kind, module) in extensions {
        let mut request = Message::new(
            u16::from_be_bytes([NFNL_SUBSYS_NFT_COMPAT, NFNL_MSG_COMPAT_GET]),
            NLM_F_REQUEST,
            0,
            family_number(family),
            0,
        );
        request.put_text(NFTA_COMPAT_NAME, name);
        request.put_u32(NFTA_COMPAT_REV, revision).put_u32(NFTA_COMPAT_TYPE, kind);
        connection.ask(request).map_err(|failure| {
            // A message of a subsystem that is not there.
            let module = if errno(&failure) == Some(Errno::EINVAL) { "nft_compat" } else { module };
            unusable(failure, name, module)
        })?;
    }
    let mut batch = Batch::new();
    for table in Tables::default().each() {
        batch.foundation(family, table);
    }
    let names = batch.names();
    match connection.transact(batch, Purpose::Check) {
        Ok(()) | Err(Failure::Changed) => Ok(()),
        Err(failure) => {
            let module = match errno(&failure) {
                Some(Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP) => "nf_tables",
                _ => "nft_chain_nat",
            };
            let what = names.get(&failure).to_owned();
            Err(unusable(failure, &what, module))
        }
    }
}

/// Chains of native nft tables that see connections before the rules of this program do, and have
/// rules of their own.
///
/// # Errors
/// As [`read`].
pub fn earlier_chains() -> Result<Vec<EarlierChain>, BackendError> {
    let found = repeated(|| {
        let answers = lists(&Connection::open()?, NFPROTO_UNSPEC)?;
        Ok(EarlierChain::find(&answers)?)
    });
    found.map_err(|failure| failed(failure, "all chains"))
}

/// The tables of these families, and the generation of which they are.
fn state(connection: &Connection, families: &[Family]) -> Result<(Vec<Tables>, u32), Failure> {
    let before = generation(connection)?;
    let mut tables = Vec::new();
    for family in families {
        let answers = lists(connection, family_number(*family))?;
        tables.push(Tables::of(*family, &answers)?);
    }
    if generation(connection)? == before { Ok((tables, before)) } else { Err(Failure::Changed) }
}

/// All chains of a family, and the rules of our tables; of no one family, the rules of all tables.
fn lists(connection: &Connection, family: u8) -> Result<Vec<Vec<u8>>, Failure> {
    let request = |kind| Message::new(nf_tables(kind), NLM_F_REQUEST | NLM_F_DUMP, 0, family, 0);
    let mut answers = connection.list(request(NFT_MSG_GETCHAIN))?;
    if family == NFPROTO_UNSPEC {
        answers.extend(connection.list(request(NFT_MSG_GETRULE))?);
        return Ok(answers);
    }
    for table in TableName::ALL {
        let mut rules = request(NFT_MSG_GETRULE);
        rules.put_text(NFTA_RULE_TABLE, table.name());
        answers.extend(connection.list(rules)?);
    }
    Ok(answers)
}

fn generation(connection: &Connection) -> Result<u32, Failure> {
    let request = Message::new(nf_tables(NFT_MSG_GETGEN), NLM_F_REQUEST, 0, NFPROTO_UNSPEC, 0);
    let answer = connection.ask(request)?;
    let received = messages(&answer)?;
    let found = received.iter().find(|message| is_nf_tables(message.kind, NFT_MSG_NEWGEN));
    let (_, attributes) = found.ok_or(Malformed)?.netfilter()?;
    Ok(attributes.u32(NFTA_GEN_ID)?.ok_or(Malformed)?)
}

/// Tries until nobody has changed anything meanwhile, but not for ever. Each try has a socket of
/// its own: what the kernel still had to say to one that was broken off is no answer to the next.
fn repeated<T>(attempt: impl FnMut() -> Result<T, Failure>) -> Result<T, Failure> {
    repeated_for(PATIENCE, attempt)
}

fn repeated_for<T>(
    patience: Duration,
    mut attempt: impl FnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let start = Instant::now();
    loop {
        match attempt() {
            Err(Failure::Changed) if start.elapsed() < patience => {}
            done => return done,
        }
    }
}

fn errno(failure: &Failure) -> Option<Errno> {
    match failure {
        Failure::Refused { errno, .. } => Some(*errno),
        Failure::Io(error) => error.raw_os_error().map(Errno::from_raw),
        Failure::Changed | Failure::Malformed => None,
    }
}

fn absent(source: io::Error) -> BackendError {
    BackendError::Absent { program: PROGRAM.to_owned(), source }
}

/// What a failure means where something was only asked.
fn failed(failure: Failure, what: &str) -> BackendError {
    let program = PROGRAM.to_owned();
    match (errno(&failure), &failure) {
        (Some(Errno::EPERM | Errno::EACCES), _) => {
            BackendError::Denied { program, message: described(&failure, what) }
        }
        (Some(errno @ (Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT)), Failure::Io(_)) => {
            absent(errno.into())
        }
        // The answer of a kernel without nf_tables, or without netlink's netfilter family
        // (`nfnetlink_rcv_msg`).
        (Some(errno @ (Errno::EINVAL | Errno::EOPNOTSUPP)), Failure::Refused { .. }) => {
            absent(errno.into())
        }
        (_, Failure::Changed) => BackendError::Busy { program },
        _ => BackendError::Refused { program, message: described(&failure, what) },
    }
}

/// What a failure means where a transaction was made.
fn refused(failure: Failure, names: &Names) -> BackendError {
    let (program, message) = (PROGRAM.to_owned(), described(&failure, names.get(&failure)));
    match (errno(&failure), failure) {
        (Some(Errno::EPERM | Errno::EACCES), _) => BackendError::Denied { program, message },
        (_, Failure::Changed) => BackendError::Busy { program },
        _ => BackendError::Refused { program, message },
    }
}

/// What a failure means where the kernel was asked for something that it may lack.
fn unusable(failure: Failure, what: &str, modules: &'static str) -> BackendError {
    let (program, message) = (PROGRAM.to_owned(), described(&failure, what));
    match errno(&failure) {
        Some(Errno::EPERM | Errno::EACCES) => BackendError::Denied { program, message },
        _ => BackendError::Unusable { program, message, modules },
    }
}

fn described(failure: &Failure, what: &str) -> String {
    match failure {
        Failure::Refused { errno, words, .. } => {
            // A chain that is to go, and that a map of verdicts names, say.
            let used =
                if *errno == Errno::EBUSY { ", something of others leads to it" } else { "" };
            format!("{what}: {}{words}{used}", io::Error::from(*errno))
        }
        Failure::Io(error) => format!("{what}: {error}"),
        Failure::Changed => format!("{what}: changed by others"),
        Failure::Malformed => format!("{what}: {Malformed}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(errno: Errno) -> Failure {
        Failure::Refused { errno, sequence: 0, words: String::new() }
    }

    #[test]
    fn a_change_of_others_is_tried_again_and_not_for_ever() {
        let mut tries = 0;
        let busy = repeated_for::<()>(Duration::from_millis(5), || {
            tries += 1;
            Err(Failure::Changed)
        });
        assert!(tries > 1, "{tries}");
        let names = Names::default();
        assert!(matches!(refused(busy.unwrap_err(), &names), BackendError::Busy { .. }));
        assert!(matches!(failed(Failure::Changed, ""), BackendError::Busy { .. }));

        let mut changes = 3;
        let done = repeated(|| match changes {
            0 => Ok(7),
            _ => {
                changes -= 1;
                Err(Failure::Changed)
            }
        });
        assert_eq!(done.unwrap(), 7);
        let mut tries = 0;
        let refused = repeated::<()>(|| {
            tries += 1;
            Err(refusal(Errno::EINVAL))
        });
        assert!(refused.is_err() && tries == 1);
    }

    #[test]
    fn a_kernel_without_nf_tables_is_told_from_one_that_refuses() {
        assert!(matches!(failed(refusal(Errno::EINVAL), ""), BackendError::Absent { .. }));
        let out_of_memory = || Failure::Io(Errno::ENOBUFS.into());
        assert!(matches!(failed(out_of_memory(), ""), BackendError::Refused { .. }));
        assert!(matches!(failed(refusal(Errno::EPERM), ""), BackendError::Denied { .. }));
        let names = Names::default();
        let einval = refused(refusal(Errno::EINVAL), &names);
        assert!(matches!(einval, BackendError::Refused { .. }), "{einval}");
        assert!(matches!(refused(refusal(Errno::EPERM), &names), BackendError::Denied { .. }));
        let lacks = unusable(refusal(Errno::ENOENT), "owner", "xt_owner").to_string();
        assert!(lacks.contains("load the kernel's xt_owner module"), "{lacks}");
    }
}
