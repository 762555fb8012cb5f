//! What an answer is made of, told as bytes in and bytes out.

use super::answer::{Answer, Event, Expect, Unkept};
use crate::wire::frame::put;
use crate::wire::reply::{self, TransactionStatus};

fn answer(expected: &[Expect], bytes: &[u8]) -> Answer {
    let mut answer = Answer::new(vec![0; 256].into_boxed_slice());
    for &reply in expected {
        answer.expect(reply);
    }
    answer.spare()[..bytes.len()].copy_from_slice(bytes);
    answer.advance(bytes.len());
    answer
}

fn frames(kinds: &[(u8, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, body) in kinds {
        put(&mut out, *kind, &[body]);
    }
    out
}

#[test]
fn a_plain_answer_passes_untouched() {
    let bytes = frames(&[(b'T', b"x"), (b'D', b"row"), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
    let mut answer = answer(&[Expect::Simple], &bytes);
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
    assert_eq!(answer.ready_joined(), bytes);
}

#[test]
fn preambles_are_taken_out() {
    let mut bytes = frames(&[(b'C', b"BEGIN\0"), (b'Z', b"T")]);
    let own = frames(&[(b'T', b"x"), (b'C', b"SELECT 1\0"), (b'Z', b"T")]);
    bytes.extend_from_slice(&own);
    let mut answer = answer(&[Expect::Preamble, Expect::Simple], &bytes);
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::InTransaction)));
    assert_eq!(answer.ready_joined(), own);
}

/// What pgsteer puts in behind the client's Query is taken out as well.
#[test]
fn preambles_are_taken_out_behind_a_query() {
    let own = frames(&[(b'C', b"RESET\0"), (b'Z', b"T")]);
    let mut bytes = own.clone();
    bytes.extend_from_slice(&frames(&[(b'C', b"SET\0"), (b'Z', b"T")]));
    let mut answer = answer(&[Expect::Simple, Expect::Preamble], &bytes);
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::InTransaction)));
    assert_eq!(answer.ready_joined(), own);
}

#[test]
fn local_replies_stand_where_they_belong() {
    let bytes = frames(&[(b'1', b""), (b'2', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
    let expected = [
        Expect::Local { reply: reply::PARSE_COMPLETE, token: 9 },
        Expect::Parse { forward: false, token: 0 },
        Expect::Bind,
        Expect::Local { reply: reply::CLOSE_COMPLETE, token: 9 },
        Expect::Execute,
        Expect::Sync,
    ];
    let mut answer = answer(&expected, &bytes);
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
    let seen = frames(&[(b'1', b""), (b'2', b""), (b'3', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
    assert_eq!(answer.ready_joined(), seen);
}

#[test]
fn an_error_skips_to_sync_and_tells_failed_parses() {
    let bytes = frames(&[(b'E', b"CXX001\0\0"), (b'Z', b"I")]);
    let expected = [
        Expect::Parse { forward: true, token: 7 },
        Expect::Bind,
        Expect::Local { reply: reply::CLOSE_COMPLETE, token: 9 },
        Expect::Sync,
    ];
    let mut answer = answer(&expected, &bytes);
    assert!(matches!(answer.scan(), Ok(Event::Error(_))));
    answer.accept();
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
    assert_eq!(answer.ready_joined(), bytes);
    assert_eq!(answer.take_unkept(), Unkept { tokens: vec![7, 9], refused: Some(7) });
}

/// C05: what was held back of a cancelled read never reaches the client.
#[test]
fn a_discarded_error_takes_its_answer_with_it() {
    let said: [(u8, &[u8]); 6] = [
        (b'N', b"C00000\0\0"),
        (b'S', b"TimeZone\0Asia/Tokyo\0"),
        (b'T', b"x"),
        (b'D', b"row"),
        (b'E', b"C40001\0\0"),
        (b'Z', b"I"),
    ];
    let mut answer = answer(&[Expect::Simple], &frames(&said));
    assert!(matches!(answer.scan(), Ok(Event::Notice(_))));
    answer.accept();
    assert_eq!(answer.scan(), Ok(Event::ParameterStatus));
    answer.accept();
    assert!(matches!(answer.scan(), Ok(Event::Error(_))));
    assert!(answer.ready_bytes() > 0, "it is held back");
    answer.discard();
    assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
    assert!(answer.ready_joined().is_empty());
}

#[test]
fn frames_larger_than_the_buffer_stream_through() {
    let mut big = vec![b'D'];
    big.extend_from_slice(&1000u32.to_be_bytes());
    big.extend(std::iter::repeat_n(7u8, 996));
    big.extend_from_slice(&frames(&[(b'C', b"SELECT 1\0"), (b'Z', b"I")]));
    let mut answer = answer(&[Expect::Simple], &[]);
    let (mut seen, mut rest) = (Vec::new(), &big[..]);
    loop {
        let spare = answer.spare();
        let count = spare.len().min(rest.len());
        spare[..count].copy_from_slice(&rest[..count]);
        rest = &rest[count..];
        answer.advance(count);
        let event = answer.scan().unwrap();
        seen.extend_from_slice(answer.ready_joined());
        answer.passed_on();
        if let Event::Complete(_) = event {
            break;
        }
    }
    assert_eq!(seen, big);
}

/// A ReadyForQuery that comes before a statement is answered is none of it: what is behind it would be taken for another's answer.
#[test]
fn a_ready_for_query_out_of_turn_is_told() {
    let ready: (u8, &[u8]) = (b'Z', b"I");
    let complete: (u8, &[u8]) = (b'C', b"SELECT 0\0");
    let extended = [Expect::Bind, Expect::Execute, Expect::Sync];
    for (expected, said) in [
        (&[Expect::Simple][..], vec![ready]),
        (&[Expect::Simple], vec![(b'T', b"x"), (b'D', b"row"), ready]),
        (&[Expect::Preamble, Expect::Simple], vec![complete, ready, ready]),
        (&extended, vec![(b'2', b""), ready]),
        (&[Expect::Begin, Expect::Simple], vec![ready]),
        (&[Expect::Begin, Expect::Simple], vec![(b'1', b""), (b'2', b""), (b'C', b"BEGIN\0"), ready]),
        (&[], vec![ready]),
    ] {
        assert_eq!(answer(expected, &frames(&said)).scan(), Ok(Event::OutOfTurn), "{expected:?} {said:?}");
    }
    for (expected, said) in [
        (&[Expect::Simple][..], vec![(b'I', &b""[..]), ready]),
        (&[Expect::Simple], vec![(b'V', b"\0\0\0\0"), ready]),
        (&extended, vec![(b'2', b""), (b's', b""), ready]),
        (&[Expect::Sync], vec![ready]),
    ] {
        let complete = Ok(Event::Complete(TransactionStatus::Idle));
        assert_eq!(answer(expected, &frames(&said)).scan(), complete, "{expected:?} {said:?}");
    }
}
