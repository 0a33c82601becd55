//! Assembles: the parts of the `pointsman` binary.
//!
//! ```text
//!   file ──▶ config ──▶ plan ──▶ assembly ──▶ workers          started once
//!                        │          ▲            ▲ │
//!                        ▼          │   mailbox  │ │ ended, retired
//!                      world ──▶ snapshots ──────┘ ▼
//!                        ▲                      control ◀── prober, signals
//!                        └──────── observations ───┘
//!                      view ◀── reports ◀── fleet      ──▶ metrics, status, admin
//! ```
//!
//! A library only so that the tests and the fuzz targets can reach the configuration.
#![forbid(unsafe_code)]

pub mod access_log;
pub mod admin;
pub mod assembly;
pub mod author;
pub mod budget;
pub mod check;
pub mod cli;
pub mod client;
pub mod compiler;
pub mod config;
pub mod control;
pub mod cores;
pub mod crew;
pub mod demo;
pub mod discovery;
pub mod doctor;
pub mod endpoints;
pub mod failure;
pub mod fleet;
pub mod flows;
pub mod inherited;
pub mod mailbox;
pub mod metrics;
pub mod notify;
pub mod plan;
pub mod plugins;
pub mod privileges;
pub mod prober;
pub mod problem;
pub mod random;
pub mod reload;
pub mod runtime;
pub mod seat;
pub mod service;
pub mod settling;
pub mod setup;
pub mod sockets;
pub mod status;
pub mod steering;
pub mod swap;
pub mod table;
pub mod turns;
pub mod view;
pub mod worker;
pub mod world;

/// The version of this program.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
