//! Runs of sends: whole, in order, and resumed where the kernel had to stop.

mod common;

use std::io::Write;

use common::{adopt, collect, link, pattern, read, receive, ring, ring_with, send, turn};
use pointsman_core::boundary::{Buffer, Completion, Memory, Pool, SendEnd};
use pointsman_ring::Ring;

/// Fills buffers of a pool with a pattern, by receiving it from a peer of link 0.
fn filled(ring: &mut Ring, pool: Pool, len: usize) -> Vec<Buffer> {
    let mut source = adopt(ring, link(0));
    let writer = std::thread::spawn(move || source.write_all(&pattern(len)).map(|()| source));
    let buffers = receive(ring, link(0), pool, len as u32);
    writer.join().expect("writer").expect("write");
    buffers
}

fn assert_whole(ring: &mut Ring, len: usize) {
    let sent = Completion::Sent { link: link(1), bytes: len as u32, end: SendEnd::Whole };
    assert_eq!(collect(ring, 1), [sent]);
}

#[test]
fn a_run_of_many_buffers_arrives_whole_and_in_order() {
    let (mut ring, len) = (ring(), 60_000);
    let buffers = filled(&mut ring, Pool::Small, len);
    assert!(buffers.len() > 10);
    let mut peer = adopt(&mut ring, link(1));
    send(&mut ring, link(1), buffers);
    assert_whole(&mut ring, len);
    assert_eq!(read(&mut peer, len), pattern(len));
    assert_eq!(ring.free_buffers(Pool::Small), 1024);
}

#[test]
fn what_is_written_here_is_sent_ahead_of_what_was_received() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(1));
    let received = filled(&mut ring, Pool::Small, 1_000);
    let header = ring.write(b"PROXY UNKNOWN\r\n").expect("a buffer");
    assert_eq!(ring.bytes(&header), b"PROXY UNKNOWN\r\n");
    send(&mut ring, link(1), std::iter::once(header).chain(received).collect());
    assert_whole(&mut ring, 15 + 1_000);
    let bytes = read(&mut peer, 15 + 1_000);
    assert_eq!(&bytes[..15], b"PROXY UNKNOWN\r\n");
    assert_eq!(&bytes[15..], pattern(1_000));
    assert_eq!(ring.free_buffers(Pool::Small), 1024);
}

#[test]
fn a_buffer_without_its_beginning_is_sent_without_it() {
    let mut ring = ring();
    let mut peer = adopt(&mut ring, link(1));
    let whole = ring.write(b"header, then the stream").expect("a buffer");
    let rest = whole.skip(8).expect("there is more");
    send(&mut ring, link(1), vec![rest]);
    assert_whole(&mut ring, 15);
    assert_eq!(read(&mut peer, 15), b"then the stream");
    assert_eq!(ring.free_buffers(Pool::Small), 1024);
}

#[test]
fn a_link_tells_the_address_that_its_peer_connected_to() {
    let mut ring = ring();
    let client = adopt(&mut ring, link(0));
    assert_eq!(ring.local_address(link(0)), client.peer_addr().ok());
    assert_eq!(ring.local_address(link(1)), None);
}

#[test]
fn nothing_is_written_when_no_buffer_is_free() {
    let mut ring = ring_with(4, 1, 1);
    common::quiet(&mut ring);
    assert_eq!(ring.write(b"anything"), None);
}

#[test]
fn a_short_write_resumes_at_its_offset() {
    let len = 16 << 20;
    let mut ring = ring_with(4, 16, 600);
    let buffers = filled(&mut ring, Pool::Bulk, len);
    let mut peer = adopt(&mut ring, link(1));
    send(&mut ring, link(1), buffers);
    common::quiet(&mut ring);
    let reader = std::thread::spawn(move || {
        let mut all = Vec::new();
        while all.len() < len {
            let step = (len - all.len()).min(700_001);
            all.extend(read(&mut peer, step));
            std::thread::yield_now();
        }
        all
    });
    assert_whole(&mut ring, len);
    assert!(reader.join().expect("reader") == pattern(len), "the bytes are out of order");
    assert_eq!(ring.free_buffers(Pool::Bulk), 600);
}

#[test]
fn runs_of_many_links_in_one_turn_do_not_mix_though_they_are_more_than_one_submission() {
    const LINKS: u32 = 200;
    const RUN: usize = 36;
    let mut ring = ring_with(2 + LINKS, 8192, 1);
    let mut source = adopt(&mut ring, link(0));
    let mut peers: Vec<_> = (0..LINKS).map(|at| adopt(&mut ring, link(2 + at))).collect();
    let mut runs = Vec::new();
    for at in 0..LINKS {
        let mut run = Vec::new();
        for _ in 0..RUN {
            source.write_all(&[at as u8]).expect("write");
            run.extend(receive(&mut ring, link(0), Pool::Small, 1));
        }
        runs.push(run);
    }
    for (at, run) in runs.into_iter().enumerate() {
        send(&mut ring, link(2 + at as u32), run);
    }
    let mut sent = 0;
    while sent < LINKS {
        sent += turn(&mut ring).len() as u32;
    }
    for (at, peer) in peers.iter_mut().enumerate() {
        assert_eq!(read(peer, RUN), vec![at as u8; RUN]);
    }
}

#[test]
fn a_send_to_a_peer_that_reset_is_broken() {
    let mut ring = ring();
    let buffers = filled(&mut ring, Pool::Small, 100);
    let peer = adopt(&mut ring, link(1));
    common::reset(&mut ring, peer);
    send(&mut ring, link(1), buffers);
    let sent = Completion::Sent { link: link(1), bytes: 0, end: SendEnd::Broken };
    assert_eq!(collect(&mut ring, 2).pop(), Some(sent));
}

#[test]
fn a_run_of_which_nothing_is_taken_comes_back_and_can_be_sent_to_another() {
    let (mut ring, len) = (ring(), 20_000);
    let received = filled(&mut ring, Pool::Small, len);
    let whole = ring.write(b"header, then the stream").expect("a buffer");
    let rest = whole.skip(8).expect("there is more");
    let run: Vec<_> = std::iter::once(rest).chain(received).collect();
    let count = run.len();
    let gone = adopt(&mut ring, link(1));
    common::reset(&mut ring, gone);
    send(&mut ring, link(1), run);
    let mut completions = collect(&mut ring, count + 1);
    let sent = Completion::Sent { link: link(1), bytes: 0, end: SendEnd::Broken };
    assert_eq!(completions.pop(), Some(sent), "it is the last");
    let back = completions.into_iter().rev().map(|completion| match completion {
        Completion::Returned { buffer, .. } => buffer,
        other => panic!("{other:?}"),
    });
    let back: Vec<_> = back.collect();
    let mut peer = adopt(&mut ring, link(2));
    send(&mut ring, link(2), back);
    let sent = Completion::Sent { link: link(2), bytes: 15 + len as u32, end: SendEnd::Whole };
    assert_eq!(collect(&mut ring, 1), [sent]);
    let bytes = read(&mut peer, 15 + len);
    assert_eq!(&bytes[..15], b"then the stream");
    assert_eq!(&bytes[15..], pattern(len));
    assert_eq!(ring.free_buffers(Pool::Small), 1024);
}
