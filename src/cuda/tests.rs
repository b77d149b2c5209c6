//! The room on a GPU, with a kernel of the tests' own. Every test skips, with a message, where there is no GPU.

use cudarc::driver::result::ctx;
use tch::{Kind, Tensor};

use super::*;
use crate::error::{Error, ErrorKind, Result};

static AXPY: Source = Source::file(
    "test_axpy.cu",
    r#"
        #include "half.cuh"
        // y[i] += a * x[i]
        extern "C" __global__ void axpy(float* y, const float* x, float a, int count) {
            extern __shared__ float unused[];
            overlap_wait();
            const int i = blockIdx.x * blockDim.x + threadIdx.x;
            if (i < count) y[i] += a * x[i];
            overlap_trigger();
        }
    "#,
);

/// The first GPU, or a message.
pub(crate) fn gpu() -> Option<&'static Device> {
    device(0).inspect_err(|error| println!("SKIPPED: {error}")).ok()
}

/// The first GPU; where there is none, the test ends.
macro_rules! gpu_or_skip {
    () => {
        match $crate::cuda::tests::gpu() {
            Some(device) => device,
            None => return,
        }
    };
}
pub(crate) use gpu_or_skip;

fn cuda_tensor(values: &[f32]) -> Tensor {
    Tensor::from_slice(values).to(tch::Device::Cuda(0))
}

fn values(tensor: &Tensor) -> Vec<f32> {
    Vec::try_from(tensor.to(tch::Device::Cpu)).unwrap()
}

/// y += a x, on the stream.
fn axpy(
    device: &'static Device,
    stream: Stream,
    y: &Tensor,
    x: &Tensor,
    a: f32,
    overlap: bool,
) -> Result<()> {
    let kernel = device.kernel(&AXPY, "axpy")?;
    let count = i32::try_from(y.numel()).unwrap();
    let grid = [u32::try_from(y.numel().div_ceil(128)).unwrap(), 1, 1];
    let (y, x) = (y.data_ptr(), x.data_ptr());
    let launch = Launch { grid, block: 128, shared_bytes: 0, overlap };
    // SAFETY: the types of the kernel's parameters; every test synchronizes or copies before it drops its tensors.
    unsafe { kernel.launch(stream, &launch, &[arg(&y), arg(&x), arg(&a), arg(&count)]) }
}

#[test]
fn a_kernel_runs_on_libtorchs_memory_and_stream() {
    let device = gpu_or_skip!();
    let y = cuda_tensor(&[1.0; 1000]);
    let x = Tensor::arange(1000, (Kind::Float, tch::Device::Cuda(0)));
    axpy(device, device.current_stream().unwrap(), &y, &x, 2.0, false).unwrap();
    let wanted: Vec<f32> = (0..1000_u16).map(|i| 1.0 + 2.0 * f32::from(i)).collect();
    assert_eq!(values(&y), wanted);
}

#[test]
fn overlapping_launches_see_each_others_writes() {
    let device = gpu_or_skip!();
    let y = cuda_tensor(&[0.0; 100_000]);
    let x = cuda_tensor(&[1.0; 100_000]);
    for _ in 0..200 {
        axpy(device, device.current_stream().unwrap(), &y, &x, 1.0, true).unwrap();
    }
    assert_eq!(values(&y), [200.0; 100_000]);
}

#[test]
fn a_wrong_number_of_arguments_is_refused() {
    let device = gpu_or_skip!();
    let kernel = device.kernel(&AXPY, "axpy").unwrap();
    let launch = Launch { grid: [1, 1, 1], block: 32, shared_bytes: 0, overlap: false };
    // SAFETY: refused before anything is read.
    let error = unsafe { kernel.launch(device.current_stream().unwrap(), &launch, &[]) }.unwrap_err();
    assert_eq!(error.to_string(), "axpy: 0 arguments, the kernel has 4 parameters");
}

#[test]
fn kernels_made_ready_together_are_the_ones_that_launch() {
    let device = gpu_or_skip!();
    device.prepare(&[&AXPY, &AXPY]).unwrap();
    let (y, x) = (cuda_tensor(&[0.0; 256]), cuda_tensor(&[1.0; 256]));
    axpy(device, device.current_stream().unwrap(), &y, &x, 3.0, false).unwrap();
    assert_eq!(values(&y), [3.0; 256]);
    static WRONG: Source = Source::file("test_wrong.cu", "error");
    let error = device.prepare(&[&AXPY, &WRONG]).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Cuda, "test_wrong.cu"));
}

#[test]
fn the_cache_makes_kernels_ready_sooner_than_the_compiler() {
    let _ = gpu_or_skip!();
    let time = time_kernel_preparation(0).unwrap();
    println!("{time:?}");
    assert_eq!(time.count, kernels::ALL.len());
    assert!(time.cached_seconds > 0.0 && time.compile_seconds > 2.0 * time.cached_seconds, "{time:?}");
}

#[test]
fn an_unknown_kernel_is_an_error_about_it() {
    let device = gpu_or_skip!();
    let error = device.kernel(&AXPY, "saxpy").unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Cuda, "saxpy"));
}

#[test]
fn an_unknown_device_is_an_error_about_it() {
    let _ = gpu_or_skip!();
    let error = device(99).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "cuda:99"));
}

#[test]
fn a_kernel_tells_its_resources() {
    let device = gpu_or_skip!();
    let kernel = device.kernel(&AXPY, "axpy").unwrap();
    assert!(kernel.occupancy(128, 0).unwrap() >= 8);
    kernel.set_shared_bytes(device.shared_bytes_per_block).unwrap();
    assert_eq!(kernel.occupancy(128, device.shared_bytes_per_block).unwrap(), 1);
    let error = kernel.set_shared_bytes(device.shared_bytes_per_block + 1).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, "axpy"));
}

#[test]
fn a_stream_is_current_only_meanwhile() {
    let device = gpu_or_skip!();
    let before = device.current_stream().unwrap();
    let stream = device.pool_stream().unwrap();
    assert!(!stream.is_default());
    let inside = device.with_stream(stream, || device.current_stream()).unwrap();
    assert_eq!(inside, stream);
    assert_eq!(device.current_stream().unwrap(), before);
    let error = device.with_stream(stream, || Err::<(), _>(Error::invalid("test", "fails"))).unwrap_err();
    assert_eq!(error.subject(), "test");
    assert_eq!(device.current_stream().unwrap(), before);
}

#[test]
fn the_context_of_a_thread_is_left_as_it_was() {
    let device = gpu_or_skip!();
    let after = std::thread::spawn(|| {
        assert!(ctx::get_current().unwrap().is_none());
        device.free_and_total_bytes().unwrap();
        ctx::get_current().unwrap().is_none()
    });
    assert!(after.join().unwrap());
}

#[test]
fn a_graph_replays_what_was_captured() {
    let device = gpu_or_skip!();
    let stream = device.pool_stream().unwrap();
    let (y, x) = (cuda_tensor(&[0.0; 256]), cuda_tensor(&[1.0; 256]));
    device.synchronize(device.current_stream().unwrap()).unwrap();
    let graph = Graph::capture(device, stream, || {
        axpy(device, device.current_stream()?, &y, &x, 1.0, false)?;
        axpy(device, device.current_stream()?, &y, &x, 2.0, true)
    })
    .unwrap();
    assert_eq!(values(&y), [0.0; 256], "nothing runs while it is captured");
    for _ in 0..5 {
        graph.launch(stream).unwrap();
    }
    device.synchronize(stream).unwrap();
    assert_eq!(values(&y), [15.0; 256]);
}

#[test]
fn a_failed_capture_tells_the_works_error_and_ends() {
    let device = gpu_or_skip!();
    let stream = device.pool_stream().unwrap();
    let (y, x) = (cuda_tensor(&[0.0; 256]), cuda_tensor(&[1.0; 256]));
    let error = Graph::capture(device, stream, || {
        axpy(device, stream, &y, &x, 1.0, false)?;
        Err(Error::invalid("test", "fails"))
    })
    .unwrap_err();
    assert_eq!(error.subject(), "test");
    device.synchronize(stream).unwrap();
    let graph = Graph::capture(device, stream, || axpy(device, stream, &y, &x, 1.0, false)).unwrap();
    graph.launch(stream).unwrap();
    device.synchronize(stream).unwrap();
    assert_eq!(values(&y), [1.0; 256]);
}

#[test]
fn the_default_stream_is_not_captured() {
    let device = gpu_or_skip!();
    let default = device.current_stream().unwrap();
    assert!(default.is_default());
    assert_eq!(Graph::capture(device, default, || Ok(())).unwrap_err().kind(), ErrorKind::InvalidArgument);
}

#[test]
fn the_timer_measures_what_lies_between() {
    let device = gpu_or_skip!();
    let stream = device.current_stream().unwrap();
    let (y, x) = (cuda_tensor(&[0.0; 1 << 20]), cuda_tensor(&[1.0; 1 << 20]));
    let timer = EventTimer::new(device).unwrap();
    let time = |launches| {
        timer.start(stream).unwrap();
        for _ in 0..launches {
            axpy(device, stream, &y, &x, 1.0, false).unwrap();
        }
        timer.stop(stream).unwrap();
        timer.elapsed().unwrap()
    };
    time(1);
    let (few, many) = (time(10), time(1000));
    assert!(!few.is_zero() && many > 10 * few, "{few:?}, {many:?}");
}

#[test]
fn the_peak_counts_what_comes_after_the_start_and_goes_again() {
    const BYTES: i64 = 256 << 20;
    let _ = gpu_or_skip!();
    drop(cuda_tensor(&[0.0]));
    let peak = PeakMemory::start(0).unwrap();
    drop(Tensor::zeros([BYTES], (Kind::Uint8, tch::Device::Cuda(0))));
    let bytes = peak.finish();
    // Other tests allocate meanwhile.
    assert!((BYTES as u64..2 * BYTES as u64).contains(&bytes), "{bytes}");
}

#[test]
fn the_device_is_described() {
    let device = gpu_or_skip!();
    let info = device_info(0).unwrap();
    println!("{info:?}");
    assert_eq!((info.compute_capability, info.multiprocessors), (device.compute, device.multiprocessors));
    assert!(info.memory_bytes as usize >= device.free_and_total_bytes().unwrap().1);
    assert!(device.shared_bytes_per_multiprocessor > device.shared_bytes_per_block);
}
