// SPDX-License-Identifier: Apache-2.0
//! DNS messages (RFC 1035 §4), as far as a forwarder reads and writes them: queries with one question, and answers of a
//! few records. Everything that comes from a guest is read here, once, with every length checked.

use std::net::IpAddr;

/// The longest query that is read: questions have 255 bytes of name at most, and the rest is options.
pub const MAX_QUERY: usize = 4096;
/// What any client takes in a datagram (RFC 1035 §2.3.4).
const MIN_UDP_SIZE: u16 = 512;

const HEADER: usize = 12;
const MAX_NAME: usize = 255;
/// Records behind the question that are looked at: EDNS, and a signature.
const MAX_ADDITIONAL: u16 = 4;

/// Types of records.
pub mod kind {
    /// IPv4 address.
    pub const A: u16 = 1;
    /// Name of an address.
    pub const PTR: u16 = 12;
    /// IPv6 address.
    pub const AAAA: u16 = 28;
    /// EDNS options (RFC 6891).
    pub const OPT: u16 = 41;
    /// All of them.
    pub const ANY: u16 = 255;
}

/// The Internet's class.
pub const CLASS_IN: u16 = 1;

/// How a query went (RFC 1035 §4.1.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Code {
    /// Well; there may be no record of the type that was asked for.
    Ok = 0,
    /// It cannot be read.
    Format = 1,
    /// No server could answer.
    Failed = 2,
    /// There is no such name.
    NoName = 3,
    /// Not a kind of query that is known here.
    NotKnown = 4,
    /// Not answered for this client.
    Refused = 5,
}

/// Why a message is not looked at further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// It is no query at all, and an answer to it could start a conversation of two servers.
    NoQuery,
    /// A query with this number that is to be answered with an error.
    Query(u16, Code),
}

/// A query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Query {
    /// The client's number for it.
    pub id: u16,
    /// The name, in small letters, labels separated by dots; `None` where it has bytes that no name here has.
    pub name: Option<String>,
    /// The type of the records.
    pub kind: u16,
    /// Their class.
    pub class: u16,
    /// The question as it came.
    pub question: Vec<u8>,
    /// Bytes that the client takes in a datagram.
    pub udp_size: u16,
    /// The client asks for recursion.
    recursion: bool,
}

/// A record of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The address of the name that was asked for.
    Address(IpAddr),
    /// The name of the address that was asked for.
    Name(String),
}

/// Reads a query.
///
/// # Errors
/// See [`Bad`].
pub fn parse(message: &[u8]) -> Result<Query, Bad> {
    let mut reader = Reader { rest: message };
    let header = reader.take(HEADER).ok_or(Bad::NoQuery)?;
    let word = |at: usize| match header.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    };
    let (id, flags) = (word(0), word(2));
    if flags & 0x8000 != 0 {
        return Err(Bad::NoQuery);
    }
    let bad = |code| Bad::Query(id, code);
    if flags & 0x7800 != 0 {
        return Err(bad(Code::NotKnown));
    }
    let (questions, answers, authorities, additional) = (word(4), word(6), word(8), word(10));
    if questions != 1 || answers != 0 || authorities != 0 || additional > MAX_ADDITIONAL {
        return Err(bad(Code::Format));
    }
    let format = || bad(Code::Format);
    let name = reader.name().ok_or_else(format)?;
    let kind = reader.word().ok_or_else(format)?;
    let class = reader.word().ok_or_else(format)?;
    let question_bytes = message.len() - HEADER - reader.rest.len();
    let question = message.get(HEADER..HEADER + question_bytes).unwrap_or_default().to_vec();
    let mut udp_size = MIN_UDP_SIZE;
    for _ in 0..additional {
        let (kind, class) = reader.record().ok_or_else(format)?;
        if kind == kind::OPT {
            udp_size = class.max(MIN_UDP_SIZE);
        }
    }
    if !reader.rest.is_empty() {
        return Err(format());
    }
    Ok(Query { id, name: text_of(&name), kind, class, question, udp_size, recursion: flags & 0x0100 != 0 })
}

/// An answer to a query.
pub fn answer(query: &Query, code: Code, records: &[Record], ttl: u32) -> Vec<u8> {
    let data: Vec<(u16, Vec<u8>)> = records.iter().filter_map(data_of).collect();
    let mut message = header(query.id, query.recursion, code, 1);
    if let (Some(count), Ok(records)) = (message.get_mut(6..8), u16::try_from(data.len())) {
        count.copy_from_slice(&records.to_be_bytes());
    }
    message.extend_from_slice(&query.question);
    for (kind, data) in data {
        // The name is that of the question, which follows the header.
        message.extend_from_slice(&[0xc0, 12]);
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&CLASS_IN.to_be_bytes());
        message.extend_from_slice(&ttl.to_be_bytes());
        message.extend_from_slice(&u16::try_from(data.len()).unwrap_or(0).to_be_bytes());
        message.extend_from_slice(&data);
    }
    message
}

/// An answer to a query that could not be read.
pub fn refusal(id: u16, code: Code) -> Vec<u8> {
    header(id, false, code, 0)
}

fn header(id: u16, recursion: bool, code: Code, questions: u16) -> Vec<u8> {
    // An answer, with recursion available.
    let flags = 0x8080 | if recursion { 0x0100 } else { 0 } | code as u16;
    [id, flags, questions, 0, 0, 0].iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn data_of(record: &Record) -> Option<(u16, Vec<u8>)> {
    Some(match record {
        Record::Address(IpAddr::V4(address)) => (kind::A, address.octets().to_vec()),
        Record::Address(IpAddr::V6(address)) => (kind::AAAA, address.octets().to_vec()),
        Record::Name(name) => (kind::PTR, encode(name)?),
    })
}

/// A name as labels; `None` where it is too long for that.
fn encode(name: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        let length = u8::try_from(label.len()).ok().filter(|length| (1..=63).contains(length))?;
        bytes.push(length);
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    (bytes.len() <= MAX_NAME).then_some(bytes)
}

/// Whether `message` answers a query that was sent with this number and question.
pub fn answers(message: &[u8], id: u16, question: &[u8]) -> bool {
    let (Some(&[high, low, flags, ..]), Some(questions)) = (message.get(..HEADER), message.get(4..6)) else {
        return false;
    };
    let echoed = message.get(HEADER..HEADER + question.len());
    // An error may come without the question (RFC 1035 does not say so, servers do).
    let same = questions == [0, 0] || echoed.is_some_and(|echoed| echoed.eq_ignore_ascii_case(question));
    u16::from_be_bytes([high, low]) == id && flags & 0x80 != 0 && same
}

/// Gives a message another number.
pub fn renumber(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// Cuts an answer that is too long for the client's datagram: it will ask again over TCP (RFC 2181 §9).
pub fn truncate(message: &mut Vec<u8>, query: &Query) {
    if message.len() <= usize::from(query.udp_size) {
        return;
    }
    message.truncate(HEADER);
    message.extend_from_slice(&query.question);
    if let Some(flags) = message.get_mut(2) {
        *flags |= 0x02;
    }
    if let Some(counts) = message.get_mut(4..HEADER) {
        counts.copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 0]);
    }
}

/// The name in small letters; only what a host's name may have, and underscores.
fn text_of(labels: &[&[u8]]) -> Option<String> {
    let fits = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let mut text = String::new();
    for label in labels {
        if !label.iter().all(fits) || label.contains(&b'.') {
            return None;
        }
        if !text.is_empty() {
            text.push('.');
        }
        text.extend(label.iter().map(|byte| char::from(byte.to_ascii_lowercase())));
    }
    Some(text)
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1)?.first().copied()
    }

    fn word(&mut self) -> Option<u16> {
        self.take(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    /// The labels of a name. There is nothing before a query's names that a pointer could lead to.
    fn name(&mut self) -> Option<Vec<&'a [u8]>> {
        let (mut labels, mut bytes) = (Vec::new(), 1);
        loop {
            let length = usize::from(self.byte()?);
            if length == 0 {
                return Some(labels);
            }
            bytes += 1 + length;
            if length > 63 || bytes > MAX_NAME {
                return None;
            }
            labels.push(self.take(length)?);
        }
    }

    /// Type and class of a record, which is stepped over.
    fn record(&mut self) -> Option<(u16, u16)> {
        self.name()?;
        let (kind, class) = (self.word()?, self.word()?);
        self.take(4)?;
        let length = self.word()?;
        self.take(usize::from(length))?;
        Some((kind, class))
    }
}

#[cfg(test)]
#[path = "message_test.rs"]
mod tests;
