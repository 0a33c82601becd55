//! Flows whose endpoint has reset them before it had anything of them: they get another.

use pointsman_core::boundary::{Buffer, Completion, Link, Op, ReceiveEnd, SendEnd, Side};

use super::{Flow, Oracle, View};

/// What has been sent, by the side it comes from.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Delivered {
    streams: [u64; 2],
    /// Bytes of the header that have not been taken, and where they are.
    header: u32,
    header_at: Option<(usize, u32)>,
    /// Whether a side has been told that the other has ended.
    is_ended: bool,
}

impl Delivered {
    /// A header is sent ahead of the client's bytes.
    pub(super) fn announce(&mut self, header: &Buffer) {
        self.header = header.len();
        self.header_at = Some((header.pool().index(), header.index()));
    }

    /// A side is told that the other has ended.
    pub(super) fn end(&mut self) {
        self.is_ended = true;
    }

    /// Bytes were taken.
    pub(super) fn add(&mut self, from: usize, bytes: u32) {
        let ahead = if from == Side::Downstream.index() { self.header.min(bytes) } else { 0 };
        self.header -= ahead;
        self.header_at = self.header_at.filter(|_| self.header > 0);
        self.streams[from] += u64::from(bytes - ahead);
    }
}

impl Flow {
    /// Whether client and endpoint have had nothing of each other, that anybody knows of.
    fn is_undelivered(&self) -> bool {
        let is_open = self.established && !self.closing;
        let is_silent = self.delivered.streams == [0; 2] && !self.delivered.is_ended;
        is_open && is_silent && !self.answered
    }
}

impl Oracle {
    /// The flow whose endpoint this is the end of, if it has to go on with another.
    pub(super) fn lost_undelivered(&self, completion: &Completion, view: &View<'_>) -> Option<u32> {
        let (Completion::ReceiveEnded { link, end: ReceiveEnd::Reset }
        | Completion::Sent { link, bytes: 0, end: SendEnd::Broken }) = completion
        else {
            return None;
        };
        let flow = &self.flows[&link.slot()];
        let may_try = flow.attempts < view.listener(flow).connect_attempts;
        let goes_on = link.side() == Side::Upstream && flow.is_undelivered() && may_try;
        goes_on.then_some(link.slot())
    }

    /// A buffer is back, and is the client's as before. That of a header is nobody's any more.
    pub(super) fn follow_returned(&mut self, link: Link, buffer: &Buffer) {
        let flow = self.flows.get_mut(&link.slot()).expect("bytes belong to a flow");
        let place = (buffer.pool().index(), buffer.index());
        let from = link.side().other();
        if from == Side::Downstream && flow.delivered.header_at == Some(place) {
            (flow.delivered.header, flow.delivered.header_at) = (0, None);
            return;
        }
        let sending = &mut flow.sending[from.index()];
        sending.bytes -= u64::from(buffer.len());
        sending.buffers -= 1;
        self.received.insert(place);
    }

    /// Of the flow that has to go on the endpoint's link is closed, and nothing else happens but that a
    /// header is given back.
    pub(super) fn assert_undelivered_goes_on(&self, ops: &[Op]) {
        let Some(slot) = self.undelivered else { return };
        let upstream = Link::new(slot, Side::Upstream);
        let is_abandoned = matches!(
            ops,
            [Op::Close { link, .. }] | [Op::Recycle { .. }, Op::Close { link, .. }]
                if *link == upstream
        );
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
