//! tch's [`IValue`] to libtorch's and back: tch keeps its own conversion private.

use std::ffi::{c_char, c_int, CStr, CString};

use tch::{IValue, Tensor};
use torch_sys::{CIValue, C_tensor};

use crate::error::{Error, ErrorKind, Result};

/// An owned `c10::IValue`.
pub(super) struct Value(*mut CIValue);

impl Drop for Value {
    fn drop(&mut self) {
        // SAFETY: owned, see `Value::own`.
        unsafe { torch_sys::ati_free(self.0) };
    }
}

/// What `ati_tag` of torch-sys calls the types.
mod tag {
    pub const NONE: i32 = 0;
    pub const TENSOR: i32 = 1;
    pub const DOUBLE: i32 = 2;
    pub const INT: i32 = 3;
    pub const BOOL: i32 = 4;
    pub const TUPLE: i32 = 5;
    pub const INT_LIST: i32 = 6;
    pub const DOUBLE_LIST: i32 = 7;
    pub const BOOL_LIST: i32 = 8;
    pub const STRING: i32 = 9;
    pub const TENSOR_LIST: i32 = 10;
    pub const LIST: i32 = 12;
    pub const DICT: i32 = 13;
}

/// What the last call of torch-sys reported.
fn last_error(subject: &str) -> Result<()> {
    // SAFETY: gives away a text from `strdup`, or null.
    let message = unsafe { torch_sys::get_and_reset_last_err() };
    if message.is_null() {
        return Ok(());
    }
    // SAFETY: terminated, as above.
    let text = unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned();
    // SAFETY: from `strdup`, and not used after this.
    unsafe { libc_free(message) };
    Err(Error::new(ErrorKind::Torch, subject, text))
}

extern "C" {
    #[link_name = "free"]
    fn libc_free(pointer: *mut c_char);
}

impl Value {
    /// Takes what a function of torch-sys or of csrc/torchscript gave away.
    pub(super) fn own(pointer: *mut CIValue, subject: &str) -> Result<Self> {
        last_error(subject)?;
        if pointer.is_null() {
            return Err(Error::new(ErrorKind::Torch, subject, "libtorch returned no value"));
        }
        Ok(Self(pointer))
    }

    pub(super) fn as_ptr(&self) -> *const CIValue {
        self.0
    }

    /// # Errors
    /// For objects of TorchScript classes, which tch does not let out.
    pub(super) fn of(value: &IValue, subject: &str) -> Result<Self> {
        // SAFETY: every function copies what its pointers lead to, which lives until after the call: tensors and texts are borrowed
        // from `value`, the values and arrays made here are dropped at the end of their arm.
        let pointer = unsafe {
            match value {
                IValue::None => torch_sys::ati_none(),
                IValue::Tensor(tensor) => torch_sys::ati_tensor(tensor.as_ptr().cast_mut()),
                IValue::Double(double) => torch_sys::ati_double(*double),
                IValue::Int(int) => torch_sys::ati_int(*int),
                IValue::Bool(bool) => torch_sys::ati_bool(c_int::from(*bool)),
                IValue::String(text) => torch_sys::ati_string(c_text(text, subject)?.as_ptr()),
                IValue::IntList(ints) => torch_sys::ati_int_list(ints.as_ptr(), len(ints.len(), subject)?),
                IValue::DoubleList(list) => {
                    torch_sys::ati_double_list(list.as_ptr(), len(list.len(), subject)?)
                }
                IValue::BoolList(list) => {
                    let bytes: Vec<c_char> = list.iter().map(|&bool| c_char::from(bool)).collect();
                    torch_sys::ati_bool_list(bytes.as_ptr(), len(bytes.len(), subject)?)
                }
                IValue::StringList(texts) => {
                    let texts: Vec<CString> =
                        texts.iter().map(|text| c_text(text, subject)).collect::<Result<_>>()?;
                    let pointers: Vec<*const c_char> = texts.iter().map(|text| text.as_ptr()).collect();
                    torch_sys::ati_string_list(pointers.as_ptr(), len(pointers.len(), subject)?)
                }
                IValue::TensorList(tensors) => {
                    let pointers: Vec<*mut C_tensor> =
                        tensors.iter().map(|tensor| tensor.as_ptr().cast_mut()).collect();
                    torch_sys::ati_tensor_list(pointers.as_ptr(), len(pointers.len(), subject)?)
                }
                IValue::Tuple(values) => {
                    let values = all(values, subject)?;
                    torch_sys::ati_tuple(pointers(&values).as_ptr(), len(values.len(), subject)?)
                }
                IValue::GenericList(values) => {
                    let values = all(values, subject)?;
                    torch_sys::ati_generic_list(pointers(&values).as_ptr(), len(values.len(), subject)?)
                }
                IValue::GenericDict(pairs) => {
                    let flat: Vec<Self> = pairs
                        .iter()
                        .flat_map(|(key, value)| [Self::of(key, subject), Self::of(value, subject)])
                        .collect::<Result<_>>()?;
                    torch_sys::ati_generic_dict(pointers(&flat).as_ptr(), len(pairs.len(), subject)?)
                }
                IValue::Device(tch::Device::Cpu) => torch_sys::ati_device(-1),
                IValue::Device(tch::Device::Cuda(index)) => torch_sys::ati_device(len(*index, subject)?),
                other => return Err(unsupported(subject, &format!("an argument {other:?}"))),
            }
        };
        Self::own(pointer, subject)
    }

    /// # Errors
    /// For types that tch's `IValue` does not have.
    pub(super) fn to_tch(&self, subject: &str) -> Result<IValue> {
        // SAFETY: the pointer is an owned IValue; each function is called for the type that the tag says, and arrays have the
        // length that it reports.
        unsafe {
            let value = match torch_sys::ati_tag(self.0) {
                tag::NONE => IValue::None,
                tag::TENSOR => IValue::Tensor(own_tensor(torch_sys::ati_to_tensor(self.0), subject)?),
                tag::DOUBLE => IValue::Double(torch_sys::ati_to_double(self.0)),
                tag::INT => IValue::Int(torch_sys::ati_to_int(self.0)),
                tag::BOOL => IValue::Bool(torch_sys::ati_to_bool(self.0) != 0),
                tag::STRING => {
                    let text = torch_sys::ati_to_string(self.0);
                    last_error(subject)?;
                    let owned = CStr::from_ptr(text).to_string_lossy().into_owned();
                    libc_free(text);
                    IValue::String(owned)
                }
                tag::TUPLE => IValue::Tuple(self.elements(
                    torch_sys::ati_tuple_length(self.0),
                    torch_sys::ati_to_tuple,
                    subject,
                )?),
                tag::LIST => IValue::GenericList(self.elements(
                    torch_sys::ati_length(self.0),
                    torch_sys::ati_to_generic_list,
                    subject,
                )?),
                tag::DICT => IValue::GenericDict(self.pairs(subject)?),
                tag::INT_LIST => IValue::IntList(self.array(torch_sys::ati_to_int_list)),
                tag::DOUBLE_LIST => IValue::DoubleList(self.array(torch_sys::ati_to_double_list)),
                tag::BOOL_LIST => IValue::BoolList(
                    self.array(torch_sys::ati_to_bool_list)
                        .into_iter()
                        .map(|byte: c_char| byte != 0)
                        .collect(),
                ),
                tag::TENSOR_LIST => {
                    let count = torch_sys::ati_length(self.0);
                    let mut pointers = vec![std::ptr::null_mut(); count.max(0) as usize];
                    torch_sys::ati_to_tensor_list(self.0, pointers.as_mut_ptr(), count);
                    last_error(subject)?;
                    let tensors = pointers.into_iter().map(|pointer| own_tensor(pointer, subject));
                    IValue::TensorList(tensors.collect::<Result<_>>()?)
                }
                _ => {
                    // The tag of an unknown type comes with an error that says less than this one.
                    let _ = last_error(subject);
                    return Err(unsupported(subject, "a result of a class or another type of TorchScript"));
                }
            };
            last_error(subject)?;
            Ok(value)
        }
    }

    /// # Safety
    /// `count` is the number of elements, and `read` fits the type.
    unsafe fn elements(
        &self,
        count: c_int,
        read: unsafe extern "C" fn(*mut CIValue, *mut *mut CIValue, c_int),
        subject: &str,
    ) -> Result<Vec<IValue>> {
        let mut pointers = vec![std::ptr::null_mut(); count.max(0) as usize];
        // SAFETY: the caller's, and as many pointers as elements.
        unsafe { read(self.0, pointers.as_mut_ptr(), count) };
        own_all(pointers, subject)?.iter().map(|value| value.to_tch(subject)).collect()
    }

    fn pairs(&self, subject: &str) -> Result<Vec<(IValue, IValue)>> {
        // SAFETY: a dict, as its tag said.
        let count = unsafe { torch_sys::ati_length(self.0) };
        let mut pointers = vec![std::ptr::null_mut(); 2 * count.max(0) as usize];
        // SAFETY: as above, and two pointers for each pair.
        unsafe { torch_sys::ati_to_generic_dict(self.0, pointers.as_mut_ptr(), count) };
        let flat = own_all(pointers, subject)?;
        flat.chunks_exact(2).map(|pair| Ok((pair[0].to_tch(subject)?, pair[1].to_tch(subject)?))).collect()
    }

    /// # Safety
    /// `read` fits the type.
    unsafe fn array<T: Default + Clone>(
        &self,
        read: unsafe extern "C" fn(*mut CIValue, *mut T, c_int),
    ) -> Vec<T> {
        // SAFETY: a list, as its tag said.
        let count = unsafe { torch_sys::ati_length(self.0) };
        let mut array = vec![T::default(); count.max(0) as usize];
        // SAFETY: the caller's, and as many elements as were reported.
        unsafe { read(self.0, array.as_mut_ptr(), count) };
        array
    }
}

fn own_all(pointers: Vec<*mut CIValue>, subject: &str) -> Result<Vec<Value>> {
    last_error(subject)?;
    pointers.into_iter().map(|pointer| Value::own(pointer, subject)).collect()
}

fn own_tensor(pointer: *mut C_tensor, subject: &str) -> Result<Tensor> {
    last_error(subject)?;
    if pointer.is_null() {
        return Err(Error::new(ErrorKind::Torch, subject, "libtorch returned no tensor"));
    }
    // SAFETY: a tensor that torch-sys gave away.
    Ok(unsafe { Tensor::from_ptr(pointer) })
}

fn all(values: &[IValue], subject: &str) -> Result<Vec<Value>> {
    values.iter().map(|value| Value::of(value, subject)).collect()
}

fn pointers(values: &[Value]) -> Vec<*mut CIValue> {
    values.iter().map(|value| value.0).collect()
}

fn len(len: usize, subject: &str) -> Result<c_int> {
    c_int::try_from(len)
        .map_err(|e| Error::invalid(subject, format!("{len} elements are too many")).with_source(e))
}

fn c_text(text: &str, subject: &str) -> Result<CString> {
    super::text::to_c(text, subject)
}

fn unsupported(subject: &str, what: &str) -> Error {
    Error::unsupported(
        subject,
        format!("{what} can't be passed between Rust and TorchScript (use tensors, numbers, texts, lists, tuples and dicts)"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_comes_back_as_it_was() {
        let tensor = Tensor::from_slice(&[1i64, 2]);
        let values = [
            IValue::None,
            IValue::Tensor(tensor.shallow_clone()),
            IValue::Double(0.25),
            IValue::Int(-7),
            IValue::Bool(true),
            IValue::String("käse".to_owned()),
            IValue::IntList(vec![3, -4]),
            IValue::DoubleList(vec![0.5]),
            IValue::BoolList(vec![true, false]),
            IValue::TensorList(vec![tensor.shallow_clone(), tensor.shallow_clone()]),
            IValue::Tuple(vec![IValue::Int(1), IValue::Tuple(vec![IValue::None])]),
            IValue::GenericDict(vec![(IValue::String("a".to_owned()), IValue::Tensor(tensor))]),
        ];
        for value in values {
            let there = Value::of(&value, "value").unwrap();
            assert_eq!(there.to_tch("value").unwrap(), value);
        }
        let texts = IValue::StringList(vec!["a".to_owned(), "b".to_owned()]);
        let back = Value::of(&texts, "value").unwrap().to_tch("value").unwrap();
        assert_eq!(back, IValue::GenericList(vec![IValue::from("a"), IValue::from("b")]));
    }

    #[test]
    fn a_text_with_a_zero_is_an_error() {
        let error = Value::of(&IValue::from("a\0b"), "forward").err().unwrap();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "forward"));
    }
}
