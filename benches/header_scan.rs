//! What the header scan costs: 64 KiB of DataRows, small ones and ones of 1 kB, by the header alone and by the whole scan of
//! an answer.
//!
//! Invariant: every frame of the buffer is scanned once an iteration. Elements are frames: 200 Melem/s are 5 ns for each.
//! Must not know: sockets, the inside of the scan.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use pgsteer::relay::answer::{Answer, Event, Expect};
use pgsteer::relay::buffer::BUFFER_BYTES;
use pgsteer::wire::frame;

/// Bytes of the one value of a row.
const VALUES: [(&str, usize); 2] = [("small_rows", 8), ("rows_of_1kb", 1000)];

/// As many whole DataRows as fit into the relay's buffer, and their number.
fn rows(value_bytes: usize) -> (Vec<u8>, u64) {
    let value = vec![b'x'; value_bytes];
    let length = u32::try_from(value_bytes).expect("a small value").to_be_bytes();
    let mut one = Vec::new();
    frame::put(&mut one, b'D', &[&[0, 1], &length, &value]);
    let count = BUFFER_BYTES / one.len();
    (one.repeat(count), count as u64)
}

/// Goes from header to header.
fn headers(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    while let Ok(Some(header)) = frame::header(bytes) {
        bytes = bytes.get(header.frame_bytes..).unwrap_or_default();
        count += 1;
    }
    count
}

/// An answer with these bytes in its buffer, none of them scanned.
fn filled(buffer: Box<[u8]>, bytes: &[u8]) -> Answer {
    let mut answer = Answer::new(buffer);
    answer.expect(Expect::Simple);
    if let Some(front) = answer.spare().get_mut(..bytes.len()) {
        front.copy_from_slice(bytes);
    }
    answer.advance(bytes.len());
    answer
}

fn bench(criterion: &mut Criterion) {
    for (name, value_bytes) in VALUES {
        let (bytes, count) = rows(value_bytes);
        let mut group = criterion.benchmark_group(format!("header_scan/{name}"));
        group.throughput(Throughput::ElementsAndBytes { elements: count, bytes: bytes.len() as u64 });
        group.bench_function("header", |bencher| bencher.iter(|| headers(black_box(&bytes))));
        group.bench_function("answer", |bencher| {
            bencher.iter_batched_ref(
                || filled(vec![0; BUFFER_BYTES].into_boxed_slice(), &bytes),
                |answer| {
                    assert_eq!(answer.scan(), Ok(Event::NeedMore));
                    answer.ready_bytes()
                },
                BatchSize::SmallInput,
            );
        });
        group.finish();
    }
}

criterion_group!(benches, bench);
criterion_main!(benches);
