//! What the host does for a policy.

use std::cell::{Ref, RefCell};

/// What the host does for a policy. None of it blocks.
pub trait Host {
    /// The flows that the endpoint at this index has at the moment, over all workers, connecting
    /// ones included; 0 for an index out of range.
    fn load(&self, endpoint: usize) -> u32;

    /// Writes a line to the balancer's log. Long lines are cut, and of many lines some are dropped.
    fn log(&self, level: Level, message: &str);
}

/// How much a line in the log matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Something is broken.
    Error,
    /// Something may break.
    Warn,
    /// Something happened.
    Info,
    /// For whoever debugs the policy.
    Debug,
}

/// The host of a unit test: loads are set by hand, and the log is kept for reading.
///
/// ```
/// use pointsman_sdk::{Host, Level, MockHost};
///
/// let host = MockHost::with_loads(&[3, 0]);
/// host.set_load(1, 5);
/// assert_eq!((host.load(0), host.load(1), host.load(2)), (3, 5, 0));
///
/// host.log(Level::Info, "hello");
/// assert_eq!(host.logs()[0], (Level::Info, "hello".to_string()));
/// ```
#[derive(Debug, Clone, Default)]
pub struct MockHost {
    loads: RefCell<Vec<u32>>,
    logs: RefCell<Vec<(Level, String)>>,
}

impl MockHost {
    /// A host on which no endpoint has a flow.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A host with this many flows on each endpoint.
    #[must_use]
    pub fn with_loads(loads: &[u32]) -> Self {
        Self { loads: RefCell::new(loads.to_vec()), ..Self::default() }
    }

    /// Sets the flows of one endpoint.
    pub fn set_load(&self, endpoint: usize, flows: u32) {
        let mut loads = self.loads.borrow_mut();
        if loads.len() <= endpoint {
            loads.resize(endpoint + 1, 0);
        }
        loads[endpoint] = flows;
    }

    /// What has been logged, oldest first.
    #[must_use]
    pub fn logs(&self) -> Ref<'_, [(Level, String)]> {
        Ref::map(self.logs.borrow(), Vec::as_slice)
    }
}

impl Host for MockHost {
    fn load(&self, endpoint: usize) -> u32 {
        self.loads.borrow().get(endpoint).copied().unwrap_or(0)
    }

    fn log(&self, level: Level, message: &str) {
        self.logs.borrow_mut().push((level, message.to_string()));
    }
}
