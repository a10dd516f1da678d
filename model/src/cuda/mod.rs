//! The CUDA side of the models.

pub mod kernels;
