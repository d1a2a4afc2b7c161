//! Attention over a cache: what lies between the projections of a transformer's attention, in one call.
//!
//! ```text
//!  query heads ─▶ norm ─▶ positions ─────────────▶ q·kᵀ/√d ─▶ softmax ─▶ weights·v
//!  key heads ───▶ norm ─▶ positions ─▶ cache ─────────┘                     │
//!  value heads ──────────────────────▶ cache ───────────────────────────────┘
//! ```
//!
//! There is no matrix of scores: keys come in blocks, and the softmax keeps up with them. Blocks that a query does not
//! see are not read. A few new tokens read the cache as it is, a key or value once for all query heads that share it;
//! many tokens multiply matrices. Neither allocates memory once its thread has seen the sizes, and results do not
//! depend on the number of threads.
//!
//! # Example
//! ```
//! use pixel_core::attention::{AttentionSpec, CacheFormat, CacheMut, HeldMut, Tokens, attend};
//!
//! let spec = AttentionSpec {
//!     n_heads: 2,
//!     n_kv_heads: 1,
//!     d_head: 2,
//!     causal: true,
//!     window: None,
//!     quiet_softmax: false,
//!     norm_epsilon: None,
//!     format: CacheFormat::F32,
//! };
//! // One token: two queries, a key, a value. It sees itself alone, so both heads get the value.
//! let qkv = [1.0, 0.0, 0.0, 1.0, 0.5, 0.5, 3.0, 4.0];
//! let tokens = Tokens { batch: 1, seq: 1, start: 0, qkv: &qkv, rotary: None, norms: None, padding: None };
//! let (mut keys, mut values, mut out) = ([0.0; 2], [0.0; 2], [0.0; 4]);
//! let cache = CacheMut { capacity: 1, keys: HeldMut::F32(&mut keys), values: HeldMut::F32(&mut values) };
//! attend(&spec, &tokens, cache, &mut out);
//! assert_eq!(out, [3.0, 4.0, 3.0, 4.0]);
//! ```
//!
//! # Accuracy
//! Scores, weights and sums are in f32; [`CacheFormat`] says what the narrow formats round. A number that is not finite
//! reaches the outputs of the queries that see its token, and no others.

mod cache;
mod decode;
mod prefill;
mod prepare;
mod product;
mod scores;
mod soften;
mod spec;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub use cache::{CacheMut, HeldMut};
pub use prepare::Tokens;
pub use spec::{AttentionSpec, AttentionSpecError, CacheFormat};

use crate::math::simd::Simd;
use crate::pool;
use prepare::Call;

/// New tokens of a text from which matrices are multiplied; an estimate.
const MATRICES_FROM: usize = 4;

/// Nanoseconds of work below which a call stays on its thread.
const PARALLEL_FROM: usize = 10_000;

/// Writes the keys and values of new tokens into the cache, then lets their queries attend to all that is in it.
///
/// Query `t` stands at position `p = start + t`. It sees keys `k ≤ p` if the attention is causal, of these only
/// `k > p − window` if there is a window, and none that `padding` hides; if it is not causal, it sees all of
/// `start + seq` keys. A query that sees nothing gets zeros. Heads of queries and keys are divided by their root mean
/// square and multiplied by `gamma` if there are norms, then turned by their positions if there are any.
///
/// # Shapes
/// - out: `[batch, seq, n_heads · d_head]`
///
/// # Panics
/// If `spec` is [refused](AttentionSpec::validate), if a length or a format differs from what it and `tokens` say, if
/// the cache has no room, or if an attention that is not causal does not start at 0.
///
/// # Sources
/// Vaswani et al., <https://arxiv.org/abs/1706.03762>; Ainslie et al. (shared key heads),
/// <https://arxiv.org/abs/2305.13245>.
pub fn attend(spec: &AttentionSpec, tokens: &Tokens<'_>, cache: CacheMut<'_>, out: &mut [f32]) {
    attend_at(Simd::detect(), spec, tokens, cache, out);
}

/// [`attend`] by given instructions.
fn attend_at(simd: Simd, spec: &AttentionSpec, tokens: &Tokens<'_>, cache: CacheMut<'_>, out: &mut [f32]) {
    let call = Call::new(simd, spec, tokens, cache.capacity);
    assert_eq!(out.len(), tokens.batch * tokens.seq * spec.n_heads * spec.d_head, "outputs");
    let cache = cache.write(&call);
    if out.is_empty() {
        return;
    }
    if tokens.seq < MATRICES_FROM {
        decode::attend(&call, &cache, out);
    } else {
        prefill::attend(&call, &cache, out);
    }
}

/// Calls `run` with every task number below `tasks`, on all threads if there is work for more than one.
fn for_each(tasks: usize, nanoseconds: usize, run: impl Fn(usize) + Sync) {
    if nanoseconds < PARALLEL_FROM {
        (0..tasks).for_each(run);
    } else {
        pool::for_each(tasks, run);
    }
}

#[cfg(test)]
mod tests;
