//! Which tensor gets which codec, and the resulting sizes, before anything is coded.
//!
//! ```text
//!  Recipe ──▶ CompiledRecipe ──▶ Decision ──▶ Plan
//!  written    expressions        CodingSpec   every tensor of a checkpoint, sizes to the byte
//! ```

pub mod allocation;
mod checkpoint;
mod decision;
mod recipe;
mod remarks;
mod roles;

pub use checkpoint::{LowRankFitter, Plan, PlanItem, num_workers};
pub(crate) use checkpoint::{matrix_of, weight_error};
pub use decision::{CompiledRecipe, Decision, KeepReason, Omission};
pub use recipe::{MIN_WEIGHTS, Recipe, Rule, Treatment};
pub use remarks::Remark;
pub use roles::{ROLES, Role, RoleDefault};
