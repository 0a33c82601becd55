//! How busy a worker is, and how much it has left.

use pointsman_ring::BufferPool;
use serde::{Deserialize, Serialize};

use crate::mailbox::Report;

/// A worker's load.
#[derive(Debug, Serialize, Deserialize)]
pub struct Load {
    /// Times it has gone around its loop.
    pub turns: u64,
    /// How long it has worked in them; against `uptime_s` of the status, how busy it is.
    pub busy_ms: u64,
    /// What the kernel has told it.
    pub completions: u64,
    /// Times it has entered the kernel's ring.
    pub ring_enters: u64,
    /// Times the kernel had more to tell than its queue holds.
    pub ring_overflows: u64,
    /// Connections that it serves.
    pub sessions: u32,
    /// Its kept decisions and flows of datagrams.
    pub flow_table_entries: u32,
    /// Its ports towards endpoints of datagrams.
    pub upstream_ports: u32,
    /// Its receive buffers.
    pub buffers: Vec<Buffers>,
}

/// One pool of receive buffers.
#[derive(Debug, Serialize, Deserialize)]
pub struct Buffers {
    /// `small`, `bulk` or `datagrams`, as in the configuration.
    pub pool: String,
    /// How many there are.
    pub count: u32,
    /// How many of them nobody holds.
    pub free: u32,
    /// Times a socket had to wait for one.
    pub starved: u64,
}

impl Load {
    /// Describes what a worker has counted.
    pub fn new(report: &Report) -> Self {
        let Report { stats, ring, turns } = report;
        let buffers = |pool: BufferPool| {
            let stats = ring.buffers[pool.index()];
            Buffers {
                pool: pool.label().to_owned(),
                count: stats.count,
                free: stats.free,
                starved: stats.starved_total,
            }
        };
        Self {
            turns: turns.count(),
            busy_ms: u64::try_from(turns.total().as_millis()).unwrap_or(u64::MAX),
            completions: turns.completions(),
            ring_enters: ring.enters_total,
            ring_overflows: ring.overflows_total,
            sessions: stats.sessions_active,
            flow_table_entries: stats.flow_table_entries,
            upstream_ports: stats.ports_open,
            buffers: BufferPool::ALL.map(buffers).into(),
        }
    }
}
