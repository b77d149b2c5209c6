//! Whose memory a tensor is, without keeping it alive.

use tch::Tensor;
use torch_sys::C_tensor;

#[repr(C)]
struct RawStorage {
    _private: [u8; 0],
}

extern "C" {
    fn codecllm_storage(tensor: *const C_tensor) -> *const std::ffi::c_void;
    fn codecllm_weak_storage_new(tensor: *const C_tensor) -> *mut RawStorage;
    fn codecllm_weak_storage_expired(storage: *const RawStorage) -> bool;
    fn codecllm_weak_storage_free(storage: *mut RawStorage);
}

/// The storage's address: it identifies the storage while a [`WeakStorage`] of it exists. Zero where there is none.
pub(super) fn address_of(tensor: &Tensor) -> usize {
    // SAFETY: a tensor that is alive.
    unsafe { codecllm_storage(tensor.as_ptr()) as usize }
}

/// A reference that lets the memory go.
#[derive(Debug)]
pub(super) struct WeakStorage(*mut RawStorage);

// SAFETY: the counts of libtorch's storages are atomic, and asking is reading one.
unsafe impl Send for WeakStorage {}
// SAFETY: as above.
unsafe impl Sync for WeakStorage {}

impl WeakStorage {
    pub(super) fn of(tensor: &Tensor) -> Self {
        // SAFETY: a tensor that is alive.
        Self(unsafe { codecllm_weak_storage_new(tensor.as_ptr()) })
    }

    pub(super) fn is_expired(&self) -> bool {
        // SAFETY: owned; null stands for a tensor without a storage, of which nothing can be kept.
        self.0.is_null() || unsafe { codecllm_weak_storage_expired(self.0) }
    }
}

impl Drop for WeakStorage {
    fn drop(&mut self) {
        if !self.0.is_null() {
            // SAFETY: owned, and not used after this.
            unsafe { codecllm_weak_storage_free(self.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_storage_expires_with_its_last_tensor() {
        let tensor = Tensor::from_slice(&[1u8, 2]);
        let view = tensor.narrow(0, 1, 1);
        let weak = WeakStorage::of(&tensor);
        assert_eq!(address_of(&tensor), address_of(&view));
        drop(tensor);
        assert!(!weak.is_expired());
        drop(view);
        assert!(weak.is_expired());
    }
}
