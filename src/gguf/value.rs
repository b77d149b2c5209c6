//! The values of a GGUF's keys.

/// Many strings in one allocation: a vocabulary has more strings than bytes to spare for each.
#[derive(Debug, Default)]
pub(super) struct Texts {
    text: String,
    /// Where each ends in `text`.
    ends: Vec<usize>,
}

impl Texts {
    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(start..end)
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        (0..self.len()).filter_map(|index| self.get(index))
    }
}

/// The type of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scalar {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    U64,
    I64,
    F64,
}

impl Scalar {
    /// By GGUF's number of a type; strings and arrays are none of these.
    pub fn from_id(id: u32) -> Option<Self> {
        Some(match id {
            0 => Self::U8,
            1 => Self::I8,
            2 => Self::U16,
            3 => Self::I16,
            4 => Self::U32,
            5 => Self::I32,
            6 => Self::F32,
            7 => Self::Bool,
            10 => Self::U64,
            11 => Self::I64,
            12 => Self::F64,
            _ => return None,
        })
    }

    pub fn bytes(self) -> usize {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
        }
    }

    /// The number in `bytes`, which are as many as [`Scalar::bytes`] says.
    pub fn number(self, bytes: &[u8]) -> Option<Number> {
        Some(match self {
            Self::U8 => Number::Integer(u8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I8 => Number::Integer(i8::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U16 => Number::Integer(u16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I16 => Number::Integer(i16::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U32 => Number::Integer(u32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I32 => Number::Integer(i32::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::U64 => Number::Integer(u64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::I64 => Number::Integer(i64::from_le_bytes(bytes.try_into().ok()?).into()),
            Self::F32 => Number::Float(shortest(f32::from_le_bytes(bytes.try_into().ok()?))),
            Self::F64 => Number::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
            Self::Bool => Number::Bool(*bytes.first()? != 0),
        })
    }
}

/// The decimal that was meant by an FP32: 9.999999747378752e-6 was written as 1e-5.
fn shortest(value: f32) -> f64 {
    value.to_string().parse().unwrap_or(f64::from(value))
}

/// One number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Number {
    Integer(i128),
    Float(f64),
    Bool(bool),
}

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Integer(value) => value.fmt(f),
            Self::Float(value) => write!(f, "{value:?}"),
            Self::Bool(value) => value.fmt(f),
        }
    }
}

/// What a key stands for.
#[derive(Debug)]
pub(super) enum Value {
    Number(Number),
    Text(String),
    Texts(Texts),
    /// As it lies in the file.
    Numbers {
        scalar: Scalar,
        bytes: Vec<u8>,
    },
}

impl Value {
    /// The numbers of an array of numbers.
    pub fn numbers(&self) -> Option<impl ExactSizeIterator<Item = Option<Number>> + '_> {
        match self {
            Self::Numbers { scalar, bytes } => {
                Some(bytes.chunks_exact(scalar.bytes()).map(move |number| scalar.number(number)))
            }
            _ => None,
        }
    }
}

/// For messages: short whatever the value is.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const MOST_CHARACTERS: usize = 60;
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => write!(f, "{:?}", text.chars().take(MOST_CHARACTERS).collect::<String>()),
            Self::Texts(texts) => write!(f, "an array of {} strings", texts.len()),
            Self::Numbers { scalar, bytes } => {
                write!(f, "an array of {} numbers ({scalar:?})", bytes.len() / scalar.bytes())
            }
        }
    }
}
