//! All workers, as the control thread sees them.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use pointsman_core::listing::EntryId;
use pointsman_core::{ClusterId, Snapshot};
use pointsman_ring::Waker;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::flows::{Answer, Question};
use crate::mailbox::{Address, Command, PolicyCommand, Renewal, Report};

/// How long a worker may take to answer. A turn is far below a millisecond; one that takes a second
/// is stuck, and whoever asks must not wait for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// The workers, by number.
pub struct Fleet {
    members: Vec<Member>,
}

/// A worker does not answer.
#[derive(Debug)]
pub struct Silent {
    /// Which one.
    pub number: usize,
}

struct Member {
    address: Address,
    /// What it had counted when it last said so: totals must not go backwards when it is silent.
    last: Mutex<Option<Report>>,
}

impl Fleet {
    /// Knows the workers at these addresses, and makes them known to each other.
    pub fn new(addresses: Vec<Address>) -> Self {
        let wakers: Arc<[Waker]> =
            addresses.iter().map(|address| address.waker().clone()).collect();
        for address in &addresses {
            address.post(Command::Meet(Arc::clone(&wakers)));
        }
        let member = |address| Member { address, last: Mutex::default() };
        Self { members: addresses.into_iter().map(member).collect() }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Gives every worker the same new world.
    pub fn apply(&self, snapshot: &Arc<Snapshot>) {
        for member in &self.members {
            member.address.post(Command::Apply(Arc::clone(snapshot)));
        }
    }

    /// Gives every worker the world after a reload, and what of it is its own: one for each, in order.
    pub fn renew(&self, renewals: Vec<Renewal>) {
        for (member, renewal) in self.members.iter().zip(renewals) {
            member.address.post(Command::Renew(Box::new(renewal)));
        }
    }

    /// Tells every worker to end at once.
    pub fn stop(&self) {
        for member in &self.members {
            member.address.post(Command::Stop);
        }
    }

    /// Keeps what a worker had counted when it ended.
    pub fn keep(&self, number: usize, report: Report) {
        self.members[number].keep(report);
    }

    /// What each worker has counted. All are asked at once; one that does not answer is answered
    /// for with what it said last.
    pub async fn reports(&self) -> Vec<Report> {
        let asked: Vec<_> = self.members.iter().map(Member::ask).collect();
        let mut reports = Vec::with_capacity(asked.len());
        let deadline = tokio::time::Instant::now() + ANSWER_TIMEOUT;
        for (number, (member, answer)) in self.members.iter().zip(asked).enumerate() {
            let left = deadline.saturating_duration_since(tokio::time::Instant::now());
            match timeout(left, answer).await {
                Ok(Ok(answer)) => member.keep(answer),
                Ok(Err(_)) => {}
                Err(_) => tracing::warn!(worker = number, "does not say what it has counted"),
            }
            reports.extend(member.last());
        }
        reports
    }

    /// What a worker finds; `None` if it has ended.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn survey(
        &self,
        number: usize,
        question: Question,
    ) -> Result<Option<Answer>, Silent> {
        self.ask(number, |reply| Command::Survey { question, reply }).await
    }

    /// Whether a worker had a flow or a kept decision that it has given up; `None` if it has ended.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn forget(&self, number: usize, id: EntryId) -> Result<Option<bool>, Silent> {
        self.ask(number, |reply| Command::Forget { id, reply }).await
    }

    /// Says something about a cluster's policy to every worker at once, and waits on this thread
    /// for what each answers; `None` for one that has ended. Not for the control thread.
    pub fn tell_each<T>(
        &self,
        cluster: ClusterId,
        mut command: impl FnMut(SyncSender<T>) -> PolicyCommand,
    ) -> Vec<Result<Option<T>, Silent>> {
        let tell = |member: &Member| {
            let (reply, answer) = sync_channel(1);
            member.address.post(Command::Policy(cluster, command(reply)));
            answer
        };
        let told: Vec<_> = self.members.iter().map(tell).collect();
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        let answers = told.into_iter().enumerate().map(|(number, answer)| {
            match answer.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(answer) => Ok(Some(answer)),
                Err(RecvTimeoutError::Disconnected) => Ok(None),
                Err(RecvTimeoutError::Timeout) => Err(Silent { number }),
            }
        });
        answers.collect()
    }

    async fn ask<T>(
        &self,
        number: usize,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<Option<T>, Silent> {
        let (reply, answer) = oneshot::channel();
        self.members[number].address.post(command(reply));
        let answer = timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| Silent { number })?;
        Ok(answer.ok())
    }
}

impl Member {
    fn ask(&self) -> oneshot::Receiver<Report> {
        let (reply, answer) = oneshot::channel();
        self.address.post(Command::Report(reply));
        answer
    }

    fn keep(&self, report: Report) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(report);
    }

    fn last(&self) -> Option<Report> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
