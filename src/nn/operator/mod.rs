//! The work of the operators `codecllm::linear`, `projection`, `embedding` and `compress`, which csrc/operators.cpp registers with
//! libtorch: the same layers as in Rust, on buffers that belong to somebody else.

mod prepared;
mod storage;

use std::ffi::{c_char, CStr, CString};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tch::{Device, Tensor};
use torch_sys::C_tensor;

use super::bias::Bias;
use super::byte_buffer::restore_bytes;
use super::compressed::CompressedWeight;
use super::{CompressedEmbedding, CompressedLinear};
use crate::checkpoint::{compress_matrices, MatrixToCompress, Target};
use crate::codec::Layout;
use crate::error::{Error, ErrorKind, Result, TorchContext};

/// Of the environment: as [`set_operator_fused_rows`], for programs that are not Rust.
const FUSED_ROWS: &str = "CODECLLM_FUSED_ROWS";

/// [`CompressedLinear::set_fused_rows`] for every call of the operator `codecllm::linear` in this process: 0 forces scratch, so that a
/// lossless model gives the dense one's result bit for bit. None: what the environment's `CODECLLM_FUSED_ROWS` says, or the default.
///
/// Called for exact outputs after [`patch_linears`](crate::torchscript::patch_linears); see its example.
pub fn set_operator_fused_rows(rows: Option<usize>) {
    fused_rows().store(rows.unwrap_or_else(rows_of_environment), Ordering::Relaxed);
}

fn fused_rows() -> &'static AtomicUsize {
    static ROWS: OnceLock<AtomicUsize> = OnceLock::new();
    ROWS.get_or_init(|| AtomicUsize::new(rows_of_environment()))
}

fn rows_of_environment() -> usize {
    std::env::var(FUSED_ROWS)
        .ok()
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(super::compressed_linear::BY_DTYPE)
}

/// # Safety
/// Pointers as csrc/operators.h says: alive for the call, `out` writable, and `bias` null or a tensor.
#[no_mangle]
unsafe extern "C" fn codecllm_linear(
    path: *const c_char,
    projects: bool,
    x: *const C_tensor,
    buffers: *const *const C_tensor,
    bias: *const C_tensor,
    out: *mut *mut C_tensor,
) -> *mut c_char {
    guarded(|| {
        // SAFETY: the caller gives a text, a tensor and five tensors that live until this returns; the tensors are counted anew.
        let (path, x, buffers) = unsafe { (text(path), borrow(x), five(buffers)) };
        // SAFETY: not null, so the caller gives a tensor that lives until this returns.
        let bias = (!bias.is_null()).then(|| unsafe { borrow(bias) });
        let y = linear(path, projects, &x, buffers, bias)?;
        // SAFETY: the caller gives room for one pointer, which it owns afterwards.
        unsafe { *out = give(y) };
        Ok(())
    })
}

fn linear(
    path: &str,
    projects: bool,
    x: &Tensor,
    buffers: [Tensor; 5],
    bias: Option<Tensor>,
) -> Result<Tensor> {
    let weight = weight_of(path, buffers)?;
    let projects = projects && x.device() == Device::Cpu;
    let outputs = weight.shape()[0] as i64;
    // What else `addmm` takes beside a bias [out_features] is added afterwards.
    let (own, other) = match bias {
        Some(bias) if !projects && bias.size() == [outputs] => (Some(bias), None),
        other => (None, other),
    };
    let own = own.map(|floats| Arc::new(Bias::of_floats(path.replace("weight", "bias"), floats)));
    let layer = CompressedLinear::with(Arc::new(weight), own);
    layer.set_fused_rows(fused_rows().load(Ordering::Relaxed));
    if projects && !layer.is_fused(x)? {
        return project(path, &layer, x, other);
    }
    add_bias(path, layer.try_forward(x)?, other)
}

/// The weight in `buffers`, with what was prepared for them before.
fn weight_of(path: &str, buffers: [Tensor; 5]) -> Result<CompressedWeight> {
    turn_back_into_bytes(path, &buffers)?;
    let slot = prepared::slot_of(&buffers);
    CompressedWeight::of_buffers(path, buffers, slot)
}

/// Buffers that a change of dtype of the whole module has converted become bytes again, in the module itself.
fn turn_back_into_bytes(path: &str, buffers: &[Tensor; 5]) -> Result<()> {
    // One lock for all: several calls may come with the same tensors. Who has seen that all are bytes is safe, since those are never
    // touched.
    static CONVERSION: RwLock<()> = RwLock::new(());
    {
        let _looking = CONVERSION.read().unwrap_or_else(PoisonError::into_inner);
        if buffers.iter().all(|buffer| buffer.kind() == tch::Kind::Uint8) {
            return Ok(());
        }
    }
    let _alone = CONVERSION.write().unwrap_or_else(PoisonError::into_inner);
    buffers.iter().try_for_each(|buffer| restore_bytes(buffer, path))
}

fn add_bias(path: &str, y: Tensor, bias: Option<Tensor>) -> Result<Tensor> {
    let Some(bias) = bias else { return Ok(y) };
    let sum = tch::no_grad(|| y.f_add(&bias)).about(path)?;
    if sum.size() == y.size() && sum.kind() == y.kind() {
        return Ok(sum);
    }
    let (got, kind) = (bias.size(), bias.kind());
    Err(Error::invalid(
        path,
        format!("bias is {kind:?} {got:?}, wanted {:?} that fits {:?}", y.kind(), y.size()),
    ))
}

/// Through a dense `[in_features, out_features]` and the call that the dense module made: libtorch adds in another order for the
/// transposed matrix.
fn project(path: &str, layer: &CompressedLinear, x: &Tensor, bias: Option<Tensor>) -> Result<Tensor> {
    let shape = layer.shape().map(|features| features as i64);
    let multiply = || -> Result<Tensor> {
        let dense = Tensor::f_empty(shape, (x.kind(), x.device())).about(path)?;
        layer.decode_into(&dense)?;
        let dense = dense.f_tr().and_then(|dense| dense.f_contiguous()).about(path)?;
        match &bias {
            None => x.f_matmul(&dense).about(path),
            Some(bias) => bias.f_addmm(x, &dense).about(path),
        }
    };
    tch::no_grad(multiply)
}

/// # Safety
/// Pointers as csrc/operators.h says: alive for the call, and `out` writable.
#[no_mangle]
unsafe extern "C" fn codecllm_embedding(
    path: *const c_char,
    ids: *const C_tensor,
    buffers: *const *const C_tensor,
    like: *const C_tensor,
    out: *mut *mut C_tensor,
) -> *mut c_char {
    guarded(|| {
        // SAFETY: the caller gives a text, two tensors and five more that live until this returns; the tensors are counted anew.
        let (path, ids, buffers, like) = unsafe { (text(path), borrow(ids), five(buffers), borrow(like)) };
        let weight = weight_of(path, buffers)?;
        // As libtorch's own, which takes 32-bit ids too.
        let ids = ids.f_to_kind(tch::Kind::Int64).about(path)?;
        let rows = CompressedEmbedding::of_weight(weight, like.kind())?.try_forward(&ids)?;
        // SAFETY: the caller gives room for one pointer, which it owns afterwards.
        unsafe { *out = give(rows) };
        Ok(())
    })
}

/// # Safety
/// Pointers as csrc/operators.h says: `count` tensors, texts and choices, alive for the call, and `out` with room for five tensors
/// for each.
#[no_mangle]
unsafe extern "C" fn codecllm_compress(
    count: usize,
    weights: *const *const C_tensor,
    paths: *const *const c_char,
    row_access: *const bool,
    target: *const c_char,
    layout: *const c_char,
    out: *mut *mut C_tensor,
) -> *mut c_char {
    guarded(|| {
        // SAFETY: the caller gives a text that lives until this returns.
        let target = unsafe { text(target) };
        // SAFETY: the caller's: null or a text.
        let layout = (!layout.is_null()).then(|| unsafe { text(layout) }.parse::<Layout>()).transpose()?;
        // SAFETY: the caller gives `count` tensors.
        let weights: Vec<Tensor> = (0..count).map(|index| unsafe { borrow(*weights.add(index)) }).collect();
        let matrices: Vec<MatrixToCompress<'_>> = weights
            .iter()
            .enumerate()
            // SAFETY: `index` is below `count`, and the caller gives so many texts and choices.
            .map(|(index, weight)| unsafe {
                MatrixToCompress { path: text(*paths.add(index)), weight, row_access: *row_access.add(index) }
            })
            .collect();
        let outcomes = compress_matrices(&matrices, target.parse::<Target>()?, layout)?;
        let mut tensors = Vec::with_capacity(5 * count);
        for outcome in outcomes {
            match outcome {
                Ok(compressed) => tensors.extend(CompressedWeight::tensors(compressed.buffers())?),
                Err(_) => tensors.extend((0..5).map(|_| Tensor::from_slice::<u8>(&[]))),
            }
        }
        for (index, tensor) in tensors.into_iter().enumerate() {
            // SAFETY: the caller's: five a matrix.
            unsafe { *out.add(index) = give(tensor) };
        }
        Ok(())
    })
}

/// # Safety
/// `message` came from a function above, and is not used after this.
#[no_mangle]
unsafe extern "C" fn codecllm_free_message(message: *mut c_char) {
    // SAFETY: the caller's: made by `CString::into_raw` in `guarded`.
    drop(unsafe { CString::from_raw(message) });
}

/// Runs `work`; null, or what went wrong. Nothing unwinds into C++.
fn guarded(work: impl FnOnce() -> Result<()>) -> *mut c_char {
    let outcome = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::new(ErrorKind::Corrupt, "codecllm", "a thread panicked in an operator"))
    });
    match outcome {
        Ok(()) => std::ptr::null_mut(),
        Err(error) => {
            let message = format!("codecllm: {error}").replace('\0', " ");
            CString::new(message).unwrap_or_default().into_raw()
        }
    }
}

/// # Safety
/// A terminated text that lives for `'a`.
unsafe fn text<'a>(text: *const c_char) -> &'a str {
    // SAFETY: the caller gives a terminated text, and nobody writes to it for `'a`.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("weight")
}

/// Another handle to a tensor.
///
/// # Safety
/// A tensor that is alive.
unsafe fn borrow(tensor: *const C_tensor) -> Tensor {
    // SAFETY: the caller gives a tensor that is alive; what is returned counts as an owner of its own.
    unsafe { Tensor::clone_from_ptr(tensor.cast_mut()) }
}

/// # Safety
/// Five tensors that are alive.
unsafe fn five(tensors: *const *const C_tensor) -> [Tensor; 5] {
    // SAFETY: the caller gives an array of five tensors that are alive.
    std::array::from_fn(|index| unsafe { borrow(*tensors.add(index)) })
}

/// The handle itself, for C++ to delete.
fn give(mut tensor: Tensor) -> *mut C_tensor {
    let pointer = tensor.as_mut_ptr();
    std::mem::forget(tensor);
    pointer
}
