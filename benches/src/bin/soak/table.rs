//! One table per phase, a column per run.

use crate::balancers::Gauges;
use crate::judgement::Verdict;
use crate::load::{Kind, Tally};

/// One run of a balancer.
pub(crate) struct Column {
    pub(crate) balancer: &'static str,
    pub(crate) note: String,
    pub(crate) tally: Tally,
    pub(crate) verdict: Verdict,
    /// Of Pointsman, after the run.
    pub(crate) gauges: Option<Gauges>,
}

pub(crate) fn print(phase: &str, columns: &[Column]) {
    let row = |title: &str, value: &dyn Fn(&Column) -> String| {
        let values: String = columns.iter().map(|it| format!("{:>12}", value(it))).collect();
        println!("  {title:42}{values}");
    };
    println!("{phase}");
    row("", &|it| it.balancer.to_owned());
    for kind in Kind::ALL {
        row(kind.label(), &|it| it.tally.served(kind).count.to_string());
        row("    failed, a healthy endpoint could serve", &|it| it.verdict.ours(kind).to_string());
        if kind != Kind::Datagram {
            // Only a log tells that.
            let unsent = |it: &Column| it.gauges.map(|_| it.verdict.unsent(kind).to_string());
            row("        connected, and nothing sent yet", &|it| unsent(it).unwrap_or("-".into()));
        }
        row("    failed with the endpoint", &|it| it.verdict.killed(kind).to_string());
        row("    slowest, ms", &|it| it.tally.served(kind).slowest.as_millis().to_string());
    }
    let of_wrk = |value: fn(crate::load::Wrk) -> f64| {
        move |it: &Column| {
            it.tally.wrk.map_or_else(|| "-".to_owned(), |it| format!("{:.0}", value(it)))
        }
    };
    row("requests of wrk", &of_wrk(|it| it.requests));
    row("    errors", &of_wrk(|it| it.errors as f64));
    let of_gauges = |value: fn(Gauges) -> u64| {
        move |it: &Column| it.gauges.map_or_else(|| "-".to_owned(), |it| value(it).to_string())
    };
    row("memory afterwards, KiB", &of_gauges(|it| it.memory_bytes / 1024));
    row("descriptors afterwards", &of_gauges(|it| it.descriptors as u64));
    for column in columns {
        println!("  {}: {}", column.balancer, column.note);
    }
    println!();
}
