//! From the bytes of a query to the bytes of an answer, or to the decision to ask another server.
//!
//! Pure; hostile input gives an error code or silence, never a panic.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RData, Record, RecordType};

use crate::zone::{Lookup, NEGATIVE_TTL, TTL, Zone, apex};

/// The longest query that is read, in bytes.
pub(crate) const MAX_QUERY_BYTES: usize = 4096;
/// The longest answer sent in one datagram: fits into every path's packets (DNS flag day 2020).
const MAX_DATAGRAM_BYTES: u16 = 1232;
/// The length of a header, in bytes.
const HEADER_BYTES: usize = 12;

/// How the query came in, which bounds the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Carrier {
    Udp,
    Tcp,
}

/// What to do with a query.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Send this back.
    Reply(Vec<u8>),
    /// Ask an upstream server; failing that, answer with [`failure`].
    Forward(Box<Message>),
    /// Say nothing: not a query.
    Ignore,
}

/// Decides on one query.
pub(crate) fn respond(zone: &Zone, bytes: &[u8], carrier: Carrier) -> Verdict {
    let Ok(query) = Message::from_vec(bytes) else {
        return unreadable(bytes);
    };
    if query.metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let mut answer = prepare(&query);
    let code = if query.metadata.op_code != OpCode::Query {
        ResponseCode::NotImp
    } else if query.queries.len() != 1 {
        ResponseCode::FormErr
    } else if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        ResponseCode::BADVERS
    } else {
        match fill(zone, &query, &mut answer) {
            Some(code) => code,
            None => return Verdict::Forward(Box::new(query)),
        }
    };
    set_code(&mut answer, code);
    encode(&answer, &query, carrier).map_or(Verdict::Ignore, Verdict::Reply)
}

/// The answer when nobody could be asked, or nobody answered.
pub(crate) fn failure(query: &Message, code: ResponseCode, carrier: Carrier) -> Option<Vec<u8>> {
    let mut answer = prepare(query);
    set_code(&mut answer, code);
    encode(&answer, query, carrier)
}

/// Fills in records and gives the code; none when the name is not ours.
fn fill(zone: &Zone, query: &Message, answer: &mut Message) -> Option<ResponseCode> {
    let question = query.queries.first()?;
    let lookup = zone.look_up(&question.name, question.query_type, query.metadata.id);
    if lookup == Lookup::Foreign {
        return None;
    }
    let transfer = matches!(question.query_type, RecordType::AXFR | RecordType::IXFR);
    if transfer || !matches!(question.query_class, DNSClass::IN | DNSClass::ANY) {
        return Some(ResponseCode::Refused);
    }
    answer.metadata.authoritative = true;
    match lookup {
        Lookup::Found { records, extra } => {
            for data in records {
                // The name as it was asked: clients check that its letters come back in the same case.
                answer.add_answer(Record::from_rdata(question.name.clone(), TTL, data));
            }
            for (name, data) in extra {
                answer.add_additional(Record::from_rdata(name, TTL, data));
            }
            return Some(ResponseCode::NoError);
        }
        Lookup::NoData | Lookup::NoName | Lookup::Foreign => {}
    }
    let authority = RData::SOA(zone.authority());
    answer.add_authority(Record::from_rdata(apex(), NEGATIVE_TTL, authority));
    let no_name = lookup == Lookup::NoName;
    Some(if no_name { ResponseCode::NXDomain } else { ResponseCode::NoError })
}

/// An answer without content.
fn prepare(query: &Message) -> Message {
    let mut answer = Message::response(query.metadata.id, query.metadata.op_code);
    answer.metadata.recursion_desired = query.metadata.recursion_desired;
    answer.metadata.recursion_available = true;
    answer.add_queries(query.queries.iter().take(1).cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_DATAGRAM_BYTES).set_version(0);
        answer.set_edns(edns);
    }
    answer
}

fn set_code(answer: &mut Message, code: ResponseCode) {
    answer.metadata.response_code = code;
    if let Some(edns) = &mut answer.edns {
        edns.set_rcode_high(code.high());
    }
}

/// The bytes, cut down to a mark of truncation when they do not fit.
fn encode(answer: &Message, query: &Message, carrier: Carrier) -> Option<Vec<u8>> {
    let limit = match carrier {
        Carrier::Udp => usize::from(query.max_payload().min(MAX_DATAGRAM_BYTES)),
        Carrier::Tcp => usize::from(u16::MAX),
    };
    let bytes = answer.to_vec().ok().filter(|bytes| bytes.len() <= limit);
    bytes.or_else(|| answer.truncate().to_vec().ok())
}

/// A format error for what has at least the header of a query.
fn unreadable(bytes: &[u8]) -> Verdict {
    let Some(header) = bytes.get(..HEADER_BYTES) else { return Verdict::Ignore };
    let is_answer = header[2] & 0x80 != 0;
    if is_answer {
        return Verdict::Ignore;
    }
    let id = u16::from_be_bytes([header[0], header[1]]);
    let answer = Message::error_msg(id, OpCode::Query, ResponseCode::FormErr);
    answer.to_vec().map_or(Verdict::Ignore, Verdict::Reply)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::{InstanceAddress, Table, fixture};
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use keel_model::{InstanceId, ServiceName, StackName};
    use proptest::prelude::*;

    fn query(name: &str, kind: RecordType) -> Message {
        let mut query = Message::query();
        query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        query
    }

    fn ask_in(table: &Table, query: &Message, carrier: Carrier) -> Message {
        match respond(&Zone::new(table), &query.to_vec().unwrap(), carrier) {
            Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn ask(query: &Message) -> Message {
        ask_in(&fixture::table(), query, Carrier::Udp)
    }

    /// A table whose `cart` has so many instances that they fit into no datagram.
    fn crowded(instances: u16) -> Table {
        let mut table = fixture::table();
        let (stack, cart) = (StackName::new("shop").unwrap(), ServiceName::new("cart").unwrap());
        table.stacks.get_mut(&stack).unwrap().get_mut(&cart).unwrap().instances = (0..instances)
            .map(|n| InstanceAddress {
                id: InstanceId::numbered(&stack, &cart, u64::from(n)),
                address: ([10, 78, n.to_be_bytes()[0], n.to_be_bytes()[1]], 80).into(),
                ready: true,
            })
            .collect();
        table
    }

    #[test]
    fn letters_come_back_as_asked() {
        let query = query("cArT.sHoP.KEEL.internal.", RecordType::A);
        let answer = ask(&query);
        assert!(answer.queries[0].name.eq_case(&query.queries[0].name));
        assert!(answer.answers[0].name.eq_case(&query.queries[0].name));
        assert_eq!((answer.answers[0].ttl, answer.metadata.authoritative), (TTL, true));
        assert_eq!(answer.metadata.id, query.metadata.id);
    }

    #[test]
    fn negative_answers_carry_the_authority() {
        let absent = ask(&query("none.shop.keel.internal.", RecordType::A));
        assert_eq!(absent.metadata.response_code, ResponseCode::NXDomain);
        let empty = ask(&query("cart.shop.keel.internal.", RecordType::AAAA));
        assert_eq!(empty.metadata.response_code, ResponseCode::NoError);
        for answer in [absent, empty] {
            assert!(answer.answers.is_empty());
            assert_eq!(answer.authorities[0].record_type(), RecordType::SOA);
            assert_eq!(answer.authorities[0].ttl, NEGATIVE_TTL);
        }
    }

    #[test]
    fn foreign_names_are_forwarded() {
        let query = query("example.org.", RecordType::A);
        let zone = Zone::new(&fixture::table());
        let verdict = respond(&zone, &query.to_vec().unwrap(), Carrier::Udp);
        assert_eq!(verdict, Verdict::Forward(Box::new(query.clone())));
        let answer = failure(&query, ResponseCode::Refused, Carrier::Udp).unwrap();
        let answer = Message::from_vec(&answer).unwrap();
        assert_eq!(answer.metadata.response_code, ResponseCode::Refused);
        assert_eq!(answer.queries, query.queries);
    }

    #[test]
    fn long_answers_are_truncated_to_what_the_client_takes() {
        let table = crowded(200);
        let mut query = query("tasks.cart.shop.keel.internal.", RecordType::A);
        let answer = ask_in(&table, &query, Carrier::Udp);
        assert!(answer.metadata.truncation && answer.answers.is_empty());
        let answer = ask_in(&table, &query, Carrier::Tcp);
        assert!(!answer.metadata.truncation);
        assert_eq!(answer.answers.len(), 200);
        let mut edns = Edns::new();
        edns.set_max_payload(4096);
        query.set_edns(edns);
        // 70 addresses fit into 1232 bytes but not into 512; 200 fit into neither.
        assert_eq!(ask_in(&crowded(70), &query, Carrier::Udp).answers.len(), 70);
        assert!(ask_in(&table, &query, Carrier::Udp).metadata.truncation);
        assert_eq!(ask_in(&table, &query, Carrier::Udp).max_payload(), MAX_DATAGRAM_BYTES);
    }

    #[test]
    fn what_is_not_a_plain_question_gets_its_code() {
        let zone = Zone::new(&fixture::table());
        let base = query("cart.shop.keel.internal.", RecordType::A);
        let code = |query: &Message| match respond(&zone, &query.to_vec().unwrap(), Carrier::Udp) {
            Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap().response_code,
            other => panic!("{other:?}"),
        };
        let mut status = base.clone();
        status.metadata.op_code = OpCode::Status;
        assert_eq!(code(&status), ResponseCode::NotImp);
        let mut two = base.clone();
        two.add_query(base.queries[0].clone());
        assert_eq!(code(&two), ResponseCode::FormErr);
        let mut newer = base.clone();
        let mut edns = Edns::new();
        edns.set_version(1);
        newer.set_edns(edns);
        // The number stands for two codes; the codec reads it back as the other one.
        assert_eq!(u16::from(code(&newer)), u16::from(ResponseCode::BADVERS));
        assert_eq!(code(&query("keel.internal.", RecordType::AXFR)), ResponseCode::Refused);
        let mut chaos = base.clone();
        chaos.queries[0].query_class = DNSClass::CH;
        assert_eq!(code(&chaos), ResponseCode::Refused);
        let mut answer = base;
        answer.metadata.message_type = MessageType::Response;
        let verdict = respond(&zone, &answer.to_vec().unwrap(), Carrier::Udp);
        assert_eq!(verdict, Verdict::Ignore);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = respond(&Zone::new(&fixture::table()), &bytes, Carrier::Udp);
        }

        #[test]
        fn damaged_queries_never_panic_and_fit(
            changes in prop::collection::vec((0usize..60, any::<u8>()), 1..6),
            cut in 0usize..60,
        ) {
            let mut query = query("tasks.cart.shop.keel.internal.", RecordType::A);
            query.set_edns(Edns::new());
            let mut bytes = query.to_vec().unwrap();
            for (at, byte) in changes {
                let length = bytes.len();
                bytes[at % length] = byte;
            }
            bytes.truncate(bytes.len() - cut.min(bytes.len()).min(20) / 4);
            let verdict = respond(&Zone::new(&crowded(200)), &bytes, Carrier::Udp);
            if let Verdict::Reply(reply) = verdict {
                prop_assert!(reply.len() <= usize::from(MAX_DATAGRAM_BYTES));
                prop_assert!(Message::from_vec(&reply).is_ok());
                prop_assert_eq!(&reply[..2], &bytes[..2]);
            }
        }
    }
}
