//! What a layer of a decoder allocates for a token once its thread has seen the sizes, counted.

use burn::nn::RmsNormConfig;
use burn::tensor::{Device, Tensor};
use pixel_nn::attention::{KeyValueCache, PIXELAttentionConfig, RotaryConfig};
use pixel_nn::{FeedForward, PIXELLinearConfig, Projection};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// The system's allocator, which counts the calls of each thread.
struct Counting;

thread_local! {
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: the system's allocator does everything; a counter of the thread is no part of it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = CALLS.try_with(|calls| calls.set(calls.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

/// Most allocations of a layer: the outputs of its five operations with their shapes, and clones of what is not lent.
const LIMIT: usize = 32;

#[test]
fn a_token_allocates_little() {
    let device = Device::flex();
    let map = |from, to| Projection::from(PIXELLinearConfig::new(from, to).with_bias(false).init(&device));
    let mut attention = PIXELAttentionConfig::new(576, 9)
        .with_n_kv_heads(3)
        .with_rotary(Some(RotaryConfig::new()))
        .with_causal(true)
        .with_dropout(0.0)
        .init(&device);
    (attention.query, attention.key, attention.value) = (map(576, 576), map(576, 192), map(576, 192));
    attention.output = map(576, 576);
    let (gate, up, down) = (map(576, 1536), map(576, 1536), map(1536, 576));
    let norms = [(); 2].map(|()| RmsNormConfig::new(576).init(&device));
    let mut cache = KeyValueCache::with_capacity(32);
    let mut token = || {
        let x = Tensor::<3>::ones([1, 1, 576], &device);
        let before = CALLS.get();
        let mlp = FeedForward::gated(&gate, &up, &down).with_norm(&norms[1]);
        let block = attention.block().with_norm(&norms[0]).with_feed_forward(mlp);
        let x = block.forward_cached(x, None, &mut cache);
        drop(x);
        CALLS.get() - before
    };
    let first = token();
    let counts = [(); 20].map(|()| token());
    println!("allocations of the first token: {first}; of those that follow: {counts:?}");
    assert!(counts[5..].iter().all(|count| *count <= LIMIT), "{counts:?}");
    assert!(counts[5..].iter().all(|count| count == &counts[5]), "a steady state: {counts:?}");
}
