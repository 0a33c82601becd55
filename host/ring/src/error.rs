//! Why a ring cannot be had.
//!
//! Every message is one line that ends with what to do about it: it is read by someone whose load
//! balancer did not start.

use std::error::Error;
use std::{fmt, io};

use pointsman_core::boundary::Pool;

/// Why a ring or a listener cannot be set up.
#[derive(Debug)]
pub enum RingError {
    /// The kernel, or a sandbox around this process, forbids `io_uring`.
    Denied {
        /// What the kernel said: `EPERM` or `EACCES`.
        source: io::Error,
    },
    /// The kernel has no `io_uring`, or a seccomp profile hides it.
    Missing,
    /// The kernel's `io_uring` lacks what the ring is built on.
    TooOld,
    /// A pool of more buffers than a buffer's 16-bit name can tell apart, or of none.
    PoolSize {
        /// Which pool.
        pool: Pool,
        /// The buffers asked for.
        count: u32,
    },
    /// More datagram buffers than a buffer's 16-bit name can tell apart.
    DatagramPoolSize {
        /// The buffers asked for.
        count: u32,
    },
    /// An address cannot be listened on.
    Bind {
        /// The address.
        address: std::net::SocketAddr,
        /// What the kernel said.
        source: io::Error,
    },
    /// Another system call failed.
    Os {
        /// What was being done.
        doing: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}

impl RingError {
    /// Wraps the last system call's error.
    pub(crate) fn os(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Os { doing, source }
    }

    /// Explains why `io_uring_setup` failed.
    pub(crate) fn setup(source: io::Error) -> Self {
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => Self::Denied { source },
            Some(libc::ENOSYS) => Self::Missing,
            Some(libc::EINVAL) => Self::TooOld,
            _ => Self::Os { doing: "set up io_uring", source },
        }
    }

    fn remedy(doing: &str, source: &io::Error) -> &'static str {
        match source.raw_os_error() {
            Some(libc::EMFILE | libc::ENFILE) => "; raise the limit of open files (ulimit -n)",
            Some(libc::ENOMEM) if doing.contains("io_uring") => {
                "; raise the limit of locked memory (ulimit -l) or lower the buffer counts"
            }
            Some(libc::ENOMEM) => "; lower the buffer counts",
            _ => "",
        }
    }
}

impl fmt::Display for RingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Denied { source } => write!(
                f,
                "io_uring is denied here ({}): set kernel.io_uring_disabled=0, or run the \
                 container with a seccomp profile that allows io_uring_setup, io_uring_enter and \
                 io_uring_register",
                if source.raw_os_error() == Some(libc::EPERM) { "EPERM" } else { "EACCES" },
            ),
            Self::Missing => f.write_str(
                "io_uring is missing here (ENOSYS): run Linux 6.1 or newer, or a seccomp profile \
                 that allows io_uring_setup, io_uring_enter and io_uring_register",
            ),
            Self::TooOld => f.write_str(
                "this kernel's io_uring lacks what the ring needs (EINVAL): run Linux 6.1 or newer",
            ),
            Self::PoolSize { pool, count } => write!(
                f,
                "{count} buffers in the {} pool: choose between 1 and 65536",
                if matches!(pool, Pool::Small) { "small" } else { "bulk" },
            ),
            Self::DatagramPoolSize { count } => {
                write!(f, "{count} datagram buffers: choose between 1 and 65536, or 0 for none")
            }
            Self::Bind { address, source } => {
                let remedy = match source.raw_os_error() {
                    Some(libc::EADDRINUSE) => "; stop what listens there, or choose another port",
                    Some(libc::EACCES) => {
                        "; grant CAP_NET_BIND_SERVICE, or choose a port of 1024 or above"
                    }
                    Some(libc::EADDRNOTAVAIL) => "; choose an address of this machine",
                    _ => Self::remedy("listen", source),
                };
                write!(f, "cannot listen on {address}: {source}{remedy}")
            }
            Self::Os { doing, source } => {
                write!(f, "cannot {doing}: {source}{}", Self::remedy(doing, source))
            }
        }
    }
}

impl Error for RingError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        match self {
            Self::Denied { source } | Self::Bind { source, .. } | Self::Os { source, .. } => {
                Some(source)
            }
            Self::Missing
            | Self::TooOld
            | Self::PoolSize { .. }
            | Self::DatagramPoolSize { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(errno: i32) -> String {
        RingError::setup(io::Error::from_raw_os_error(errno)).to_string()
    }

    #[test]
    fn a_denied_ring_names_the_remedy_in_one_line() {
        let message = of(libc::EPERM);
        assert!(message.contains("EPERM"), "{message}");
        assert!(message.contains("kernel.io_uring_disabled=0"), "{message}");
        assert!(message.contains("seccomp"), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }

    #[test]
    fn an_old_kernel_is_told_from_a_denied_one() {
        assert!(of(libc::EINVAL).contains("6.1"));
        assert!(of(libc::ENOSYS).contains("ENOSYS"));
        assert!(of(libc::EMFILE).contains("ulimit -n"));
    }
}
