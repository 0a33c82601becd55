//! All workers, as the control thread sees them.

use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use pointsman_core::handover::TakenOver;
use pointsman_core::listing::EntryId;
use pointsman_core::{ClusterId, Snapshot};
use pointsman_ring::Waker;
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::timeout;

use crate::flows::{Answer, Question};
use crate::mailbox::{Address, Command, Handover, PolicyCommand, Renewal, Report, Unserved};

/// How long a worker may take to answer. A turn is far below a millisecond; a worker that gets no turn in
/// seconds, however busy the machine is, is stuck, and whoever asks must not wait for it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3);
/// How long it may take to hand over or take over a million flows on a machine that is busy with something
/// else, and how often that is looked at.
const HANDOVER_TIMEOUT: Duration = Duration::from_secs(20);
const HANDOVER_LOOK: Duration = Duration::from_micros(200);

/// The workers, by number.
pub struct Fleet {
    members: Vec<Member>,
}

/// A worker does not answer.
#[derive(Debug, thiserror::Error)]
#[error("worker {number} does not answer; ask again")]
pub struct Silent {
    /// Which one.
    pub number: usize,
}

/// Why workers have not taken over what they were to.
#[derive(Debug, thiserror::Error)]
pub enum NotTaken {
    /// One does not answer.
    #[error("{0}")]
    Silent(#[from] Silent),
    /// One cannot serve all of it.
    #[error("{0}")]
    Unserved(#[from] Unserved),
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

    /// Has every worker stop receiving and hand over what it receives by; one for each, in order. Waits on
    /// this thread, and is not for the control thread.
    ///
    /// # Errors
    /// One does not answer; the others have what they had.
    pub fn hand_over(&self) -> Result<Vec<Handover>, Silent> {
        let ask = |member: &Member| {
            let (reply, answer) = oneshot::channel();
            member.address.post(Command::HandOver(reply));
            answer
        };
        let asked: Vec<_> = self.members.iter().map(ask).collect();
        let give_up = Instant::now() + HANDOVER_TIMEOUT;
        let handed: Vec<_> = asked.into_iter().map(|answer| await_until(answer, give_up)).collect();
        match handed.iter().position(Option::is_none) {
            None => Ok(handed.into_iter().flatten().collect()),
            Some(number) => {
                self.give_back(handed);
                Err(Silent { number })
            }
        }
    }

    /// Has every worker go on with what was handed over: one for each, in order. Waits on this thread
    /// until all have, and tells what has become of it.
    ///
    /// # Errors
    /// One does not answer, and will go on with it all the same; or it cannot serve all of it.
    pub fn take_over(&self, handed: Vec<Handover>) -> Result<TakenOver, NotTaken> {
        let answers = self.give_back(handed.into_iter().map(Some));
        let give_up = Instant::now() + HANDOVER_TIMEOUT;
        let mut sum = TakenOver::default();
        for (number, answer) in answers.into_iter().enumerate() {
            let taken = await_until(answer, give_up).ok_or(Silent { number })??;
            sum.flows += taken.flows;
            sum.kept += taken.kept;
            for (sum, count) in sum.untaken.iter_mut().zip(taken.untaken) {
                *sum += count;
            }
        }
        Ok(sum)
    }

    fn give_back(
        &self,
        handed: impl IntoIterator<Item = Option<Handover>>,
    ) -> Vec<oneshot::Receiver<Result<TakenOver, Unserved>>> {
        let members = self.members.iter().zip(handed);
        let give = |(member, handed): (&Member, Option<Handover>)| {
            let (reply, answer) = oneshot::channel();
            let handover = Box::new(handed?);
            member.address.post(Command::TakeOver { handover, reply });
            Some(answer)
        };
        members.filter_map(give).collect()
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

/// What is answered by then. Whoever answers later keeps it: nobody is there to take it.
fn await_until<T>(mut answer: oneshot::Receiver<T>, give_up: Instant) -> Option<T> {
    loop {
        match answer.try_recv() {
            Ok(answer) => return Some(answer),
            Err(TryRecvError::Closed) => return None,
            Err(TryRecvError::Empty) if Instant::now() < give_up => thread::sleep(HANDOVER_LOOK),
            Err(TryRecvError::Empty) => {
                answer.close();
                return answer.try_recv().ok();
            }
        }
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
