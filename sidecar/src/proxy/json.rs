//! Reads JSON as it comes, in pieces of any size, in memory that does not grow with it: nothing is built, a visitor is
//! told. It accepts what RFC 8259 does and nothing more, since what two readers may read in two ways decides nothing here.

use memchr::memchr2;

/// How many objects and arrays may be inside one another.
pub const MAX_DEPTH: u32 = 128;
/// The longest text that is kept for a visitor, in bytes.
pub const MAX_TEXT: usize = 512;
/// Room that is made at once for a text that is kept.
const USUAL_TEXT: usize = 64;

/// Why something is not JSON, or not for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Malformed {
    /// It breaks the rules of JSON.
    Syntax,
    /// It is not UTF-8.
    Utf8,
    /// More than [`MAX_DEPTH`] objects and arrays are inside one another.
    Depth,
}

/// A value that is no object and no array. Texts that are not wanted, longer than [`MAX_TEXT`], or no text (half of a
/// surrogate pair) are `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scalar<'a> {
    /// A string.
    String(Option<&'a str>),
    /// A number.
    Number,
    /// `true` or `false`.
    Bool,
    /// `null`.
    Null,
}

/// What wants to know. Depths count the objects and arrays around: that of a member is 1 in the outermost object.
pub trait Visitor {
    /// Whether the text of the key or string that begins is to be kept.
    fn wants(&self, depth: u32, key: bool) -> bool;
    /// The key of a member.
    fn key(&mut self, depth: u32, key: Option<&str>);
    /// A value that is no object and no array.
    fn scalar(&mut self, depth: u32, value: Scalar<'_>);
    /// An object, or else an array, begins, in which members have this depth.
    fn open(&mut self, depth: u32, object: bool);
    /// It ends.
    fn close(&mut self, depth: u32);
}

/// Reads one document.
#[derive(Debug)]
pub struct Reader {
    state: State,
    depth: u32,
    /// A bit for each object or array that is open, set for objects.
    objects: u128,
    utf8: Utf8,
    text: Text,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Value,
    /// Behind `[`.
    FirstValue,
    /// Behind `{`.
    FirstKey,
    Key,
    Colon,
    /// Behind a value.
    End,
    String {
        key: bool,
    },
    Escape {
        key: bool,
    },
    Unicode {
        key: bool,
        digits: u8,
        unit: u16,
    },
    Number(Number),
    /// So many of a word's letters were there.
    Word(Word, u8),
}

/// A value that is spelled out.
#[derive(Debug, Clone, Copy)]
enum Word {
    True,
    False,
    Null,
}

impl Word {
    const fn letters(self) -> &'static [u8] {
        match self {
            Self::True => b"true",
            Self::False => b"false",
            Self::Null => b"null",
        }
    }

    const fn value(self) -> Scalar<'static> {
        match self {
            Self::True | Self::False => Scalar::Bool,
            Self::Null => Scalar::Null,
        }
    }
}

/// What of a number was there last.
#[derive(Debug, Clone, Copy)]
enum Number {
    Minus,
    Zero,
    Integer,
    Point,
    Fraction,
    Exponent,
    ExponentSign,
    ExponentDigit,
}

impl Default for Reader {
    fn default() -> Self {
        Self {
            state: State::Value,
            depth: 0,
            objects: 0,
            utf8: Utf8::default(),
            text: Text::default(),
        }
    }
}

impl Reader {
    /// Whether the document is at its end: only blanks may follow.
    pub fn is_complete(&self) -> bool {
        self.depth == 0 && matches!(self.state, State::End)
    }

    /// Reads on. After an error nothing is to be read.
    pub fn push(&mut self, bytes: &[u8], visitor: &mut impl Visitor) -> Result<(), Malformed> {
        self.utf8.push(bytes)?;
        let mut rest = bytes;
        while let Some((&byte, tail)) = rest.split_first() {
            rest = match self.state {
                State::String { key } => self.string(key, rest, visitor)?,
                State::Number(number) => {
                    if let Some(next) = step(number, byte) {
                        self.state = State::Number(next);
                        tail
                    } else {
                        self.end_number(number, visitor)?;
                        rest
                    }
                }
                _ => {
                    self.one(byte, visitor)?;
                    tail
                }
            };
        }
        Ok(())
    }

    fn one(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        match self.state {
            State::Escape { key } => self.escape(key, byte)?,
            State::Unicode { key, digits, unit } => self.unicode(key, digits, unit, byte)?,
            State::Word(word, read) => {
                let letters = word.letters();
                if letters[usize::from(read)] != byte {
                    return Err(Malformed::Syntax);
                }
                let read = read + 1;
                if usize::from(read) < letters.len() {
                    self.state = State::Word(word, read);
                } else {
                    self.state = State::End;
                    visitor.scalar(self.depth, word.value());
                }
            }
            _ if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') => {}
            State::FirstValue if byte == b']' => self.close(visitor),
            State::Value | State::FirstValue => self.value(byte, visitor)?,
            State::FirstKey if byte == b'}' => self.close(visitor),
            State::FirstKey | State::Key if byte == b'"' => {
                self.text.begin(visitor.wants(self.depth, true));
                self.state = State::String { key: true };
            }
            State::Colon if byte == b':' => self.state = State::Value,
            State::End if self.depth > 0 => match (byte, self.in_object()) {
                (b',', true) => self.state = State::Key,
                (b',', false) => self.state = State::Value,
                (b'}', true) | (b']', false) => self.close(visitor),
                _ => return Err(Malformed::Syntax),
            },
            _ => return Err(Malformed::Syntax),
        }
        Ok(())
    }

    fn value(&mut self, byte: u8, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        self.state = match byte {
            b'{' | b'[' => return self.open(byte == b'{', visitor),
            b'"' => {
                self.text.begin(visitor.wants(self.depth, false));
                State::String { key: false }
            }
            b't' => State::Word(Word::True, 1),
            b'f' => State::Word(Word::False, 1),
            b'n' => State::Word(Word::Null, 1),
            b'-' => State::Number(Number::Minus),
            b'0' => State::Number(Number::Zero),
            b'1'..=b'9' => State::Number(Number::Integer),
            _ => return Err(Malformed::Syntax),
        };
        Ok(())
    }

    fn in_object(&self) -> bool {
        self.objects >> (self.depth - 1) & 1 == 1
    }

    fn open(&mut self, object: bool, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        if self.depth == MAX_DEPTH {
            return Err(Malformed::Depth);
        }
        let bit = 1 << self.depth;
        if object {
            self.objects |= bit;
            self.state = State::FirstKey;
        } else {
            self.objects &= !bit;
            self.state = State::FirstValue;
        }
        self.depth += 1;
        visitor.open(self.depth, object);
        Ok(())
    }

    fn close(&mut self, visitor: &mut impl Visitor) {
        visitor.close(self.depth);
        self.depth -= 1;
        self.state = State::End;
    }

    /// The quick way through most of what is sent.
    fn string<'b>(
        &mut self,
        key: bool,
        bytes: &'b [u8],
        visitor: &mut impl Visitor,
    ) -> Result<&'b [u8], Malformed> {
        let end = memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len());
        let (run, rest) = bytes.split_at(end);
        // The least of all, which is found many bytes at a time, where the first one below would be looked for one by one.
        if run.iter().fold(u8::MAX, |least, byte| least.min(*byte)) < 0x20 {
            return Err(Malformed::Syntax);
        }
        self.text.push(run);
        let Some((&byte, rest)) = rest.split_first() else {
            return Ok(rest);
        };
        if byte == b'\\' {
            self.state = State::Escape { key };
            return Ok(rest);
        }
        let text = self.text.get();
        if key {
            self.state = State::Colon;
            visitor.key(self.depth, text);
        } else {
            self.state = State::End;
            visitor.scalar(self.depth, Scalar::String(text));
        }
        Ok(rest)
    }

    fn escape(&mut self, key: bool, byte: u8) -> Result<(), Malformed> {
        let meant = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 0x08,
            b'f' => 0x0c,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.state = State::Unicode {
                    key,
                    digits: 0,
                    unit: 0,
                };
                return Ok(());
            }
            _ => return Err(Malformed::Syntax),
        };
        self.text.push(&[meant]);
        self.state = State::String { key };
        Ok(())
    }

    fn unicode(&mut self, key: bool, digits: u8, unit: u16, byte: u8) -> Result<(), Malformed> {
        let digit = char::from(byte)
            .to_digit(16)
            .and_then(|digit| u16::try_from(digit).ok());
        let unit = unit << 4 | digit.ok_or(Malformed::Syntax)?;
        if digits == 3 {
            self.text.push_unit(unit);
            self.state = State::String { key };
        } else {
            self.state = State::Unicode {
                key,
                digits: digits + 1,
                unit,
            };
        }
        Ok(())
    }

    fn end_number(&mut self, number: Number, visitor: &mut impl Visitor) -> Result<(), Malformed> {
        match number {
            Number::Zero | Number::Integer | Number::Fraction | Number::ExponentDigit => {}
            Number::Minus | Number::Point | Number::Exponent | Number::ExponentSign => {
                return Err(Malformed::Syntax);
            }
        }
        self.state = State::End;
        visitor.scalar(self.depth, Scalar::Number);
        Ok(())
    }
}

/// How a number goes on with this byte.
fn step(number: Number, byte: u8) -> Option<Number> {
    Some(match (number, byte) {
        (Number::Minus, b'0') => Number::Zero,
        (Number::Minus | Number::Integer, b'0'..=b'9') => Number::Integer,
        (Number::Zero | Number::Integer, b'.') => Number::Point,
        (Number::Point | Number::Fraction, b'0'..=b'9') => Number::Fraction,
        (Number::Zero | Number::Integer | Number::Fraction, b'e' | b'E') => Number::Exponent,
        (Number::Exponent, b'+' | b'-') => Number::ExponentSign,
        (Number::Exponent | Number::ExponentSign | Number::ExponentDigit, b'0'..=b'9') => {
            Number::ExponentDigit
        }
        _ => return None,
    })
}

/// The text of a string that is being read.
#[derive(Debug, Default)]
struct Text {
    bytes: Vec<u8>,
    wanted: bool,
    /// Of a surrogate pair, the half that came first.
    high: Option<u16>,
}

impl Text {
    fn begin(&mut self, wanted: bool) {
        self.bytes.clear();
        if wanted {
            self.bytes.reserve(USUAL_TEXT);
        }
        self.wanted = wanted;
        self.high = None;
    }

    fn push(&mut self, bytes: &[u8]) {
        if !self.wanted || bytes.is_empty() {
            return;
        }
        self.wanted = self.high.is_none() && self.bytes.len() + bytes.len() <= MAX_TEXT;
        if self.wanted {
            self.bytes.extend_from_slice(bytes);
        }
    }

    /// A UTF-16 code unit, from an escape.
    fn push_unit(&mut self, unit: u16) {
        if !self.wanted {
            return;
        }
        if self.high.is_none() && (0xd800..0xdc00).contains(&unit) {
            self.high = Some(unit);
            return;
        }
        let units = self.high.take().into_iter().chain([unit]);
        for decoded in char::decode_utf16(units) {
            match decoded {
                Ok(c) => self.push(c.encode_utf8(&mut [0; 4]).as_bytes()),
                Err(_) => self.wanted = false,
            }
        }
    }

    fn get(&self) -> Option<&str> {
        let whole = self.wanted && self.high.is_none();
        whole.then(|| std::str::from_utf8(&self.bytes).ok()).flatten()
    }
}

/// Checks that pieces are UTF-8 together.
#[derive(Debug, Default)]
struct Utf8 {
    /// The beginning of a character whose end has not come.
    partial: Vec<u8>,
}

impl Utf8 {
    fn push(&mut self, mut bytes: &[u8]) -> Result<(), Malformed> {
        while !self.partial.is_empty() {
            let Some((&byte, tail)) = bytes.split_first() else {
                return Ok(());
            };
            bytes = tail;
            self.partial.push(byte);
            match std::str::from_utf8(&self.partial) {
                Ok(_) => self.partial.clear(),
                Err(error) if error.error_len().is_none() => {}
                Err(_) => return Err(Malformed::Utf8),
            }
        }
        match std::str::from_utf8(bytes) {
            Ok(_) => {}
            Err(error) if error.error_len().is_none() => {
                self.partial.extend_from_slice(&bytes[error.valid_up_to()..]);
            }
            Err(_) => return Err(Malformed::Utf8),
        }
        Ok(())
    }
}
