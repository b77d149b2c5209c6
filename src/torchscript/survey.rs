//! Which matrices of a module can be compressed, as csrc/torchscript finds them.

use std::ffi::{c_char, c_uint};

use tch::Tensor;
use torch_sys::C_tensor;

use super::module::{Module, RawModule};
use super::text::{check, copy, take};
use crate::error::Result;

/// `codecllm::Survey`.
#[repr(C)]
struct RawSurvey {
    _private: [u8; 0],
}

extern "C" {
    fn codecllm_survey_new(module: *const RawModule, out: *mut *mut RawSurvey) -> *mut c_char;
    fn codecllm_survey_free(survey: *mut RawSurvey);
    fn codecllm_survey_patched(survey: *const RawSurvey) -> *const c_char;
    fn codecllm_survey_matrices(survey: *const RawSurvey) -> usize;
    fn codecllm_matrix_places(survey: *const RawSurvey, matrix: usize) -> usize;
    fn codecllm_matrix_path(survey: *const RawSurvey, matrix: usize, place: usize) -> *const c_char;
    fn codecllm_matrix_tensor(survey: *const RawSurvey, matrix: usize) -> *const C_tensor;
    fn codecllm_matrix_roles(survey: *const RawSurvey, matrix: usize) -> c_uint;
    fn codecllm_matrix_obstacle(survey: *const RawSurvey, matrix: usize) -> *mut c_char;
    fn codecllm_survey_patch(
        survey: *mut RawSurvey,
        module: *mut RawModule,
        count: usize,
        matrices: *const usize,
        buffers: *const *const C_tensor,
    ) -> *mut c_char;
}

const LINEAR: c_uint = 1;
const PROJECTION: c_uint = 2;
const EMBEDDING: c_uint = 4;

/// One matrix in memory, which several attributes may hold.
pub(super) struct Found {
    /// The full names, at least one.
    pub paths: Vec<String>,
    /// `[out_features, in_features]`, or an embedding's `[vocab, hidden]`: transposed where the module holds it the other way.
    pub weight: Tensor,
    /// A linear multiplies by it.
    pub is_linear: bool,
    /// Rows of it are looked up.
    pub is_embedding: bool,
    /// Why it can't be patched.
    pub obstacle: Option<String>,
}

/// What was found in a module, which it keeps alive.
pub(super) struct Survey(*mut RawSurvey);

impl Drop for Survey {
    fn drop(&mut self) {
        // SAFETY: owned, and not used after this.
        unsafe { codecllm_survey_free(self.0) };
    }
}

impl Survey {
    pub(super) fn of(module: &Module) -> Result<Self> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a module that is alive, and a place for the survey.
        check(unsafe { codecllm_survey_new(module.raw(), &raw mut raw) }, module.origin())?;
        Ok(Self(raw))
    }

    /// Where the module was found patched already.
    pub(super) fn patched(&self) -> Option<String> {
        // SAFETY: a survey that is alive; so is its text.
        let text = unsafe { copy(codecllm_survey_patched(self.0)) };
        Some(text).filter(|text| !text.is_empty())
    }

    /// All matrices, numbered as [`Survey::patch`] counts.
    pub(super) fn matrices(&self) -> Vec<Found> {
        // SAFETY: a survey that is alive.
        let count = unsafe { codecllm_survey_matrices(self.0) };
        (0..count).map(|matrix| self.found(matrix)).collect()
    }

    fn found(&self, matrix: usize) -> Found {
        // SAFETY: `matrix` is below the number of matrices and each place below that of places; the survey keeps texts and tensors
        // alive, and the obstacle is given away.
        unsafe {
            let places = codecllm_matrix_places(self.0, matrix);
            let paths = (0..places).map(|place| copy(codecllm_matrix_path(self.0, matrix, place))).collect();
            let held = Tensor::clone_from_ptr(codecllm_matrix_tensor(self.0, matrix).cast_mut()).detach();
            let roles = codecllm_matrix_roles(self.0, matrix);
            Found {
                paths,
                weight: if roles & PROJECTION != 0 { held.tr() } else { held },
                is_linear: roles & (LINEAR | PROJECTION) != 0,
                is_embedding: roles & EMBEDDING != 0,
                obstacle: take(codecllm_matrix_obstacle(self.0, matrix)),
            }
        }
    }

    /// Replaces the matrices with these numbers by their buffers in `module`, which was surveyed.
    pub(super) fn patch(&mut self, module: &mut Module, chosen: &[(usize, [Tensor; 5])]) -> Result<()> {
        let numbers: Vec<usize> = chosen.iter().map(|(number, _)| *number).collect();
        let buffers: Vec<*const C_tensor> =
            chosen.iter().flat_map(|(_, buffers)| buffers.iter().map(Tensor::as_ptr)).collect();
        let origin = module.origin().to_owned();
        // SAFETY: a survey and its module that are alive, the latter borrowed mutably; numbers that the survey gave, and five tensors
        // for each.
        let message = unsafe {
            codecllm_survey_patch(self.0, module.raw_mut(), numbers.len(), numbers.as_ptr(), buffers.as_ptr())
        };
        check(message, &origin)
    }
}
