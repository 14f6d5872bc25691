//! libnftables, found at run time: its functions, and a context of it as a value.
//!
//! Nothing is decided here. That only one context is at work at a time is the caller's part.
#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::marker::{PhantomData, PhantomPinned};
use std::ptr::NonNull;

/// Of the first stable interface; every release since 0.9 has it.
pub(super) const FILE: &str = "libnftables.so.1";

/// `NFT_CTX_OUTPUT_JSON` of `nftables/libnftables.h`.
pub(super) const OUTPUT_JSON: c_uint = 1 << 4;

/// `struct nft_ctx`, of which only the library knows more.
#[repr(C)]
struct RawContext {
    _opaque: [u8; 0],
    _neither_send_nor_sync: PhantomData<(*mut u8, PhantomPinned)>,
}

/// The library's functions. It is never unloaded, so they stay what they are.
#[derive(Debug)]
pub(super) struct Library {
    ctx_new: unsafe extern "C" fn(u32) -> *mut RawContext,
    ctx_free: unsafe extern "C" fn(*mut RawContext),
    output_set_flags: unsafe extern "C" fn(*mut RawContext, c_uint),
    buffer_output: unsafe extern "C" fn(*mut RawContext) -> c_int,
    buffer_error: unsafe extern "C" fn(*mut RawContext) -> c_int,
    output_buffer: unsafe extern "C" fn(*mut RawContext) -> *const c_char,
    error_buffer: unsafe extern "C" fn(*mut RawContext) -> *const c_char,
    run_cmd_from_buffer: unsafe extern "C" fn(*mut RawContext, *const c_char) -> c_int,
}

impl Library {
    /// Finds the library where the dynamic linker looks.
    pub(super) fn load() -> Result<Self, libloading::Error> {
        // SAFETY: libnftables has no initialisers that could do harm; it is a C library made to be
        // loaded by any program.
        let library = unsafe { libloading::Library::new(FILE) }?;
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the fields' types are those of the functions' declarations in
                // `nftables/libnftables.h` (a `void` or ignored result is the same to the caller).
                *unsafe { library.get($name) }?
            };
        }
        let functions = Self {
            ctx_new: symbol!(c"nft_ctx_new"),
            ctx_free: symbol!(c"nft_ctx_free"),
            output_set_flags: symbol!(c"nft_ctx_output_set_flags"),
            buffer_output: symbol!(c"nft_ctx_buffer_output"),
            buffer_error: symbol!(c"nft_ctx_buffer_error"),
            output_buffer: symbol!(c"nft_ctx_get_output_buffer"),
            error_buffer: symbol!(c"nft_ctx_get_error_buffer"),
            run_cmd_from_buffer: symbol!(c"nft_run_cmd_from_buffer"),
        };
        // The functions above must stay mapped.
        std::mem::forget(library);
        Ok(functions)
    }
}

/// A context: a netlink socket in the network namespace of the thread that made it, and what the
/// library remembers of the rules there.
#[derive(Debug)]
pub(super) struct Context {
    library: &'static Library,
    raw: NonNull<RawContext>,
}

// SAFETY: a context is bound to no thread; it is not used by two at a time, because every method
// takes it by unique reference.
unsafe impl Send for Context {}

impl Context {
    /// `None` when the library has no memory for it. Without a netlink socket the library ends the
    /// process, so the caller looks first whether there can be one.
    pub(super) fn new(library: &'static Library, output: c_uint) -> Option<Self> {
        // SAFETY: 0 is NFT_CTX_DEFAULT, the only flag there is.
        let raw = NonNull::new(unsafe { (library.ctx_new)(0) })?;
        let context = Self { library, raw };
        // SAFETY: the context was just made and is freed only by drop.
        let buffered = unsafe {
            (library.output_set_flags)(raw.as_ptr(), output);
            (library.buffer_output)(raw.as_ptr()) == 0 && (library.buffer_error)(raw.as_ptr()) == 0
        };
        buffered.then_some(context)
    }

    /// Runs commands in one transaction: what they print, or why nothing of them happened.
    pub(super) fn run(&mut self, commands: &CStr) -> Result<String, String> {
        // SAFETY: the context lives, the text ends with a zero and is not kept; both buffers are
        // strings that live until the next call on this context and are copied before it.
        unsafe {
            let failed = (self.library.run_cmd_from_buffer)(self.raw.as_ptr(), commands.as_ptr()) != 0;
            let output = copied((self.library.output_buffer)(self.raw.as_ptr()));
            let errors = copied((self.library.error_buffer)(self.raw.as_ptr()));
            if failed { Err(errors) } else { Ok(output) }
        }
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: made by nft_ctx_new, freed once.
        unsafe { (self.library.ctx_free)(self.raw.as_ptr()) }
    }
}

/// # Safety
/// `text` is null or a string that ends with a zero.
unsafe fn copied(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: by the contract of this function.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
