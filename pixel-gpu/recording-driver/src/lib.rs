//! A CUDA driver without a device.
//!
//! It has the functions of NVIDIA's driver API that CubeCL calls. Device memory is host memory, copies are made, and
//! what is asked for is written down: which kernels a program compiles, with their code as the runtime had compiled it
//! for the device, how often it launches them, how often it waits, what it holds. So the very calls that a program
//! makes on a GPU are known on a machine that has none.
//!
//! Kernels are run if that is asked for, by [`emulate`], slowly and strictly. Otherwise a launch does nothing, and what
//! is read back is zeros or what was written.
//!
//! | variable | meaning |
//! |---|---|
//! | `PIXEL_RECORD` | the folder for what is recorded: `calls.txt` and `NUMBER.ptx`; without it nothing is written |
//! | `PIXEL_RECORD_RUN` | `1`: kernels are run |
//! | `PIXEL_RECORD_SM` | the compute capability to stand for: `80`, `90` (default) or `100` |
//!
//! A line of `calls.txt` is a call: `module NUMBER`, `function NUMBER MODULE NAME`, `launch FUNCTION GX GY GZ BX BY BZ
//! SHARED`, `wait`, `upload BYTES`, `download BYTES`, `copy BYTES`, `allocate BYTES ADDRESS`, `free ADDRESS`. Whoever
//! runs the program may add lines of its own.
//!
//! Source: *CUDA Driver API*, <https://docs.nvidia.com/cuda/cuda-driver-api/>; limits of devices: *CUDA C++ Programming
//! Guide*, "Compute Capabilities".

#![allow(
    non_snake_case,
    missing_docs,
    clippy::missing_safety_doc,
    clippy::not_unsafe_ptr_arg_deref,
    clippy::too_many_arguments,
    reason = "the functions are NVIDIA's, and what a caller must hold to is in their documentation"
)]

pub mod emulate;

use emulate::Program;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

type Status = c_int;
const SUCCESS: Status = 0;
const INVALID_VALUE: Status = 1;
const OUT_OF_MEMORY: Status = 2;
const INVALID_PTX: Status = 218;
const NOT_FOUND: Status = 500;
const LAUNCH_FAILED: Status = 719;

/// Allocations begin at multiples of it, as a device's do.
const ALIGNMENT: usize = 512;

/// What a device of a compute capability is.
struct Device {
    capability: [c_int; 2],
    name: &'static [u8],
    multiprocessors: c_int,
    /// Bytes that a block may ask for.
    shared_memory: c_int,
    memory: usize,
}

const DEVICES: [Device; 3] = [
    Device {
        capability: [8, 0],
        name: b"recording driver, as an A100\0",
        multiprocessors: 108,
        shared_memory: 163 << 10,
        memory: 80 << 30,
    },
    Device {
        capability: [9, 0],
        name: b"recording driver, as an H100\0",
        multiprocessors: 132,
        shared_memory: 227 << 10,
        memory: 80 << 30,
    },
    Device {
        capability: [10, 0],
        name: b"recording driver, as a B200\0",
        multiprocessors: 148,
        shared_memory: 227 << 10,
        memory: 180 << 30,
    },
];

fn device() -> &'static Device {
    let wanted = std::env::var("PIXEL_RECORD_SM").unwrap_or_else(|_| "90".to_owned());
    let known = |device: &&Device| format!("{}{}", device.capability[0], device.capability[1]) == wanted;
    DEVICES.iter().find(known).unwrap_or(&DEVICES[1])
}

#[derive(Default)]
struct State {
    /// The kernels of each module, where they are run.
    modules: Vec<Option<Arc<Program>>>,
    /// The module of each function, and its name there.
    functions: Vec<(usize, String)>,
    allocations: HashMap<u64, Layout>,
}

/// Whether kernels are run.
fn is_running() -> bool {
    std::env::var("PIXEL_RECORD_RUN").is_ok_and(|value| value == "1")
}

static STATE: LazyLock<Mutex<State>> = LazyLock::new(Mutex::default);

fn state() -> MutexGuard<'static, State> {
    STATE.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Appends a call to the record. A record that cannot be written ends the program: what it would show is not so.
fn record(call: std::fmt::Arguments<'_>) {
    let Some(folder) = std::env::var_os("PIXEL_RECORD").map(PathBuf::from) else { return };
    let path = folder.join("calls.txt");
    let written = OpenOptions::new()
        .create(true)
        .append(true)
        .open(&path)
        // One write, so that lines of other writers do not come between.
        .and_then(|mut file| file.write_all(format!("{call}\n").as_bytes()));
    if let Err(error) = written {
        eprintln!("{}: {error}", path.display());
        std::process::exit(1);
    }
}

fn allocate(size: usize) -> Option<u64> {
    let layout = Layout::from_size_align(size.max(1), ALIGNMENT).ok()?;
    // SAFETY: the size is not zero.
    let address = unsafe { alloc_zeroed(layout) } as u64;
    (address != 0).then(|| {
        state().allocations.insert(address, layout);
        address
    })
}

fn release(address: u64) -> Status {
    let Some(layout) = state().allocations.remove(&address) else { return INVALID_VALUE };
    // SAFETY: it was allocated with this layout, and is forgotten now.
    unsafe { dealloc(address as *mut u8, layout) };
    SUCCESS
}

/// Writes `value` where the caller wants it.
///
/// # Safety
/// `place` is null or may be written.
unsafe fn give<T>(place: *mut T, value: T) -> Status {
    if place.is_null() {
        return INVALID_VALUE;
    }
    // SAFETY: the caller's promise.
    unsafe { place.write(value) };
    SUCCESS
}

/// Copies between places that do not overlap.
///
/// # Safety
/// Both have `size` bytes.
unsafe fn copy(to: *mut c_void, from: *const c_void, size: usize) -> Status {
    // SAFETY: the caller's promise.
    unsafe { std::ptr::copy_nonoverlapping(from.cast::<u8>(), to.cast::<u8>(), size) };
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuInit(_flags: c_uint) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDriverGetVersion(version: *mut c_int) -> Status {
    // SAFETY: the caller's promise, as for all that follow.
    unsafe { give(version, 13000) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetCount(count: *mut c_int) -> Status {
    // SAFETY: see above.
    unsafe { give(count, 1) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGet(device: *mut c_int, _ordinal: c_int) -> Status {
    // SAFETY: see above.
    unsafe { give(device, 0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetName(name: *mut c_char, len: c_int, _device: c_int) -> Status {
    let known = device().name;
    if known.len() > len as usize {
        return INVALID_VALUE;
    }
    // SAFETY: there is room for `len` bytes.
    unsafe { copy(name.cast(), known.as_ptr().cast(), known.len()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetPCIBusId(id: *mut c_char, len: c_int, _device: c_int) -> Status {
    let known = b"0000:00:00.0\0";
    if known.len() > len as usize {
        return INVALID_VALUE;
    }
    // SAFETY: there is room for `len` bytes.
    unsafe { copy(id.cast(), known.as_ptr().cast(), known.len()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
    // SAFETY: see above.
    unsafe { give(bytes, device().memory) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
    // SAFETY: see above.
    unsafe {
        give(free, device().memory);
        give(total, device().memory)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_int, _device: c_int) -> Status {
    let device = device();
    // The numbers of `CUdevice_attribute`.
    let known = match attribute {
        // Threads of a block, and of its three dimensions.
        1..=3 => 1024,
        4 => 64,
        // Blocks of a grid in three dimensions.
        5 => i32::MAX,
        6 | 7 => 65535,
        // Shared memory of a block, unless it asks for more.
        8 => 48 << 10,
        // Constant memory, threads of a warp, registers of a block.
        9 => 64 << 10,
        10 => 32,
        12 => 64 << 10,
        16 => device.multiprocessors,
        75 => device.capability[0],
        76 => device.capability[1],
        // Shared memory of a multiprocessor, registers of one, memory pools.
        81 => device.shared_memory + (1 << 10),
        82 => 64 << 10,
        97 => device.shared_memory,
        115 => 1,
        _ => 0,
    };
    // SAFETY: see above.
    unsafe { give(value, known) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuDevicePrimaryCtxRetain(context: *mut *mut c_void, _device: c_int) -> Status {
    // Whatever is not null will do.
    // SAFETY: see above.
    unsafe { give(context, std::ptr::without_provenance_mut(1)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuCtxSetCurrent(_context: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Status {
    // SAFETY: see above.
    unsafe {
        give(least, 0);
        give(greatest, 0)
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreate(stream: *mut *mut c_void, _flags: c_uint) -> Status {
    // SAFETY: see above.
    unsafe { give(stream, std::ptr::without_provenance_mut(1)) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuStreamCreateWithPriority(
    stream: *mut *mut c_void,
    flags: c_uint,
    _priority: c_int,
) -> Status {
    // SAFETY: see above.
    unsafe { cuStreamCreate(stream, flags) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamDestroy_v2(_stream: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamSynchronize(_stream: *mut c_void) -> Status {
    record(format_args!("wait"));
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuStreamWaitEvent(_stream: *mut c_void, _event: *mut c_void, _flags: c_uint) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventCreate(event: *mut *mut c_void, _flags: c_uint) -> Status {
    // SAFETY: see above.
    unsafe { give(event, std::ptr::without_provenance_mut(1)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventDestroy_v2(_event: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventRecord(_event: *mut c_void, _stream: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventQuery(_event: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub extern "C" fn cuEventSynchronize(_event: *mut c_void) -> Status {
    record(format_args!("wait"));
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime(ms: *mut f32, _start: *mut c_void, _end: *mut c_void) -> Status {
    // SAFETY: see above.
    unsafe { give(ms, 0.0) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuEventElapsedTime_v2(ms: *mut f32, start: *mut c_void, end: *mut c_void) -> Status {
    // SAFETY: see above.
    unsafe { cuEventElapsedTime(ms, start, end) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAlloc_v2(address: *mut u64, size: usize) -> Status {
    let Some(allocated) = allocate(size) else { return OUT_OF_MEMORY };
    record(format_args!("allocate {size} {allocated}"));
    // SAFETY: see above.
    unsafe { give(address, allocated) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocAsync(address: *mut u64, size: usize, _stream: *mut c_void) -> Status {
    // SAFETY: see above.
    unsafe { cuMemAlloc_v2(address, size) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFree_v2(address: u64) -> Status {
    record(format_args!("free {address}"));
    release(address)
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeAsync(address: u64, _stream: *mut c_void) -> Status {
    cuMemFree_v2(address)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemAllocHost_v2(address: *mut *mut c_void, size: usize) -> Status {
    let Some(allocated) = allocate(size) else { return OUT_OF_MEMORY };
    // SAFETY: see above.
    unsafe { give(address, allocated as *mut c_void) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuMemFreeHost(address: *mut c_void) -> Status {
    release(address as u64)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyHtoDAsync_v2(
    to: u64,
    from: *const c_void,
    size: usize,
    _stream: *mut c_void,
) -> Status {
    record(format_args!("upload {size}"));
    // SAFETY: see above.
    unsafe { copy(to as *mut c_void, from, size) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, size: usize, _stream: *mut c_void) -> Status {
    record(format_args!("download {size}"));
    // SAFETY: see above.
    unsafe { copy(to, from as *const c_void, size) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, size: usize, _stream: *mut c_void) -> Status {
    record(format_args!("copy {size}"));
    // SAFETY: see above.
    unsafe { copy(to as *mut c_void, from as *const c_void, size) }
}

/// Where a copy in two dimensions begins or ends.
#[repr(C)]
pub struct Side {
    x_bytes: usize,
    y: usize,
    memory_type: c_uint,
    host: *mut c_void,
    device: c_ulonglong,
    array: *mut c_void,
    pitch: usize,
}

impl Side {
    fn row(&self, row: usize) -> *mut c_void {
        // 1 is the host, 2 the device.
        let start = if self.memory_type == 1 { self.host } else { self.device as *mut c_void };
        start.wrapping_byte_add(self.x_bytes + (self.y + row) * self.pitch)
    }
}

/// `CUDA_MEMCPY2D`.
#[repr(C)]
pub struct Copy2D {
    from: Side,
    to: Side,
    width_bytes: usize,
    height: usize,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuMemcpy2DAsync_v2(what: *const Copy2D, _stream: *mut c_void) -> Status {
    // SAFETY: see above.
    let what = unsafe { &*what };
    let kind = match (what.from.memory_type, what.to.memory_type) {
        (1, _) => "upload",
        (_, 1) => "download",
        _ => "copy",
    };
    record(format_args!("{kind} {}", what.width_bytes * what.height));
    for row in 0..what.height {
        // SAFETY: see above.
        unsafe { copy(what.to.row(row), what.from.row(row), what.width_bytes) };
    }
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleLoadData(module: *mut *mut c_void, image: *const c_void) -> Status {
    // SAFETY: what runtimes compile is text that ends in zero.
    let text = unsafe { CStr::from_ptr(image.cast()) };
    let mut state = state();
    let number = state.modules.len() + 1;
    if let Some(folder) = std::env::var_os("PIXEL_RECORD").map(PathBuf::from) {
        let path = folder.join(format!("{number}.ptx"));
        if let Err(error) = fs::write(&path, text.to_bytes()) {
            eprintln!("{}: {error}", path.display());
            std::process::exit(1);
        }
    }
    let program = is_running().then(|| Program::parse(&text.to_string_lossy())).transpose();
    state.modules.push(program.as_ref().ok().and_then(|program| program.clone().map(Arc::new)));
    if let Err(what) = program {
        eprintln!("recording driver: module {number}, {what}");
        return INVALID_PTX;
    }
    record(format_args!("module {number}"));
    // SAFETY: see above.
    unsafe { give(module, std::ptr::without_provenance_mut(number)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuModuleUnload(_module: *mut c_void) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuModuleGetFunction(
    function: *mut *mut c_void,
    module: *mut c_void,
    name: *const c_char,
) -> Status {
    // SAFETY: see above.
    let Ok(name) = unsafe { CStr::from_ptr(name) }.to_str() else { return NOT_FOUND };
    let mut state = state();
    state.functions.push((module.addr(), name.to_owned()));
    let number = state.functions.len();
    record(format_args!("function {number} {} {name}", module.addr()));
    // SAFETY: see above.
    unsafe { give(function, std::ptr::without_provenance_mut(number)) }
}

#[unsafe(no_mangle)]
pub extern "C" fn cuFuncSetAttribute(_function: *mut c_void, _attribute: c_int, _value: c_int) -> Status {
    SUCCESS
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuLaunchKernel(
    function: *mut c_void,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    _stream: *mut c_void,
    arguments: *mut *mut c_void,
    _extra: *mut *mut c_void,
) -> Status {
    record(format_args!(
        "launch {} {grid_x} {grid_y} {grid_z} {block_x} {block_y} {block_z} {shared}",
        function.addr()
    ));
    let state = state();
    let Some((module, name)) = state.functions.get(function.addr().wrapping_sub(1)).cloned() else {
        return INVALID_VALUE;
    };
    let Some(Some(program)) = state.modules.get(module.wrapping_sub(1)).cloned() else { return SUCCESS };
    let allocations: Vec<_> = state.allocations.iter().map(|(start, layout)| (*start, layout.size())).collect();
    drop(state);
    let Some(places) = program.parameters(&name) else { return NOT_FOUND };
    let mut parameters = vec![0u8; places.last().map_or(0, |(start, len)| start + len)];
    for (i, (start, len)) in places.iter().enumerate() {
        // SAFETY: there is an argument for each parameter, as long as it.
        unsafe {
            let argument = arguments.add(i).read().cast::<u8>();
            std::ptr::copy_nonoverlapping(argument, parameters[*start..].as_mut_ptr(), *len);
        }
    }
    let shape = [[grid_x, grid_y, grid_z], [block_x, block_y, block_z]];
    match program.launch(&name, parameters, shape, shared as usize, allocations.into_iter()) {
        Ok(()) => SUCCESS,
        Err(what) => {
            eprintln!("recording driver: {what}");
            LAUNCH_FAILED
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorName(_error: Status, text: *mut *const c_char) -> Status {
    // SAFETY: see above.
    unsafe { give(text, c"an error of the recording driver".as_ptr()) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn cuGetErrorString(error: Status, text: *mut *const c_char) -> Status {
    // SAFETY: see above.
    unsafe { cuGetErrorName(error, text) }
}
