//! Flows whose endpoint has reset them before it had anything of them: they get another.

use pointsman_core::boundary::{Buffer, Completion, Link, Op, ReceiveEnd, Side};

use super::{Flow, Oracle, View};

/// What has been sent, by the side it comes from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    streams: [u64; 2],
    /// Bytes of the header that have not been taken.
    header: u32,
}

impl Delivered {
    /// A header is sent ahead of the client's bytes.
    pub(super) fn announce(&mut self, header: &Buffer) {
        self.header = header.len();
    }

    /// Bytes were taken.
    pub(super) fn add(&mut self, from: usize, bytes: u32) {
        let ahead = if from == Side::Downstream.index() { self.header.min(bytes) } else { 0 };
        self.header -= ahead;
        self.streams[from] += u64::from(bytes - ahead);
    }
}

impl Flow {
    /// Whether client and endpoint have had nothing of each other, and nothing is on its way.
    fn is_undelivered(&self) -> bool {
        let is_sending = self.sending.iter().any(|sending| sending.buffers > 0);
        let is_open = self.established && !self.closing;
        let is_silent = self.delivered.streams == [0; 2] && !is_sending;
        is_open && is_silent && !self.answered && !self.half_closed
    }
}

impl Oracle {
    /// The flow whose endpoint this is the end of, if it has to go on with another.
    pub(super) fn lost_undelivered(&self, completion: &Completion, view: &View<'_>) -> Option<u32> {
        let Completion::ReceiveEnded { link, end: ReceiveEnd::Reset } = completion else {
            return None;
        };
        let flow = &self.flows[&link.slot()];
        let may_try = flow.attempts < view.listener(flow).connect_attempts;
        let goes_on = link.side() == Side::Upstream && flow.is_undelivered() && may_try;
        goes_on.then_some(link.slot())
    }

    /// Of the flow that has to go on the endpoint's link is closed, and nothing else happens.
    pub(super) fn assert_undelivered_goes_on(&self, ops: &[Op]) {
        let Some(slot) = self.undelivered else { return };
        let upstream = Link::new(slot, Side::Upstream);
        let is_abandoned = matches!(ops, [Op::Close { link, .. }] if *link == upstream);
        assert!(is_abandoned, "a flow that nobody has had anything of goes on: {ops:?}");
    }

    /// The endpoint's link alone is closed, so that another can be tried.
    pub(super) fn abandon(&mut self, link: Link) {
        let may = self.undelivered.take() == Some(link.slot());
        self.with(link, |flow| {
            assert!(!flow.established || may, "an established flow keeps its endpoint: {flow:?}");
            (flow.established, flow.abandoning) = (false, true);
        });
    }
}
