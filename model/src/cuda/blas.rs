//! Matrix products by cuBLASLt, for `--no-deterministic`. It picks a kernel for each number of rows, so that a row's sums
//! depend on how many rows there are.
//!
//! A product is planned once for each shape (descriptors, layouts, the heuristic's choice), so that issuing it is a single
//! call. The shapes of graphs are planned before they are captured, other shapes when a step first has them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ffi::c_void;

use cudarc::cublaslt::{result as lt, sys};

use super::backend::ProductShape;
use super::driver::Gpu;
use super::error::{CudaError, Doing};
use super::library::CUBLASLT;
use super::memory::DeviceMemory;
use super::purpose::Purpose;
use crate::checkpoint::Dtype;

/// The number of bytes that NVIDIA recommends for Hopper.
pub(super) const WORKSPACE: usize = 32 << 20;

/// A handle of cuBLASLt, and the products that were planned with it.
pub(super) struct Blas {
    handle: sys::cublasLtHandle_t,
    dtype: sys::cudaDataType,
    workspace: DeviceMemory,
    plans: HashMap<ProductShape, Plan>,
}

// SAFETY: the handle belongs to the context, not to a thread, and it is used through a mutable borrow.
unsafe impl Send for Blas {}

impl Blas {
    pub fn new(gpu: &Gpu, dtype: Dtype) -> Result<Self, CudaError> {
        CUBLASLT.require()?;
        let dtype = match dtype {
            Dtype::Bf16 => sys::cudaDataType::CUDA_R_16BF,
            Dtype::F16 => sys::cudaDataType::CUDA_R_16F,
            Dtype::F32 => sys::cudaDataType::CUDA_R_32F,
        };
        let workspace = DeviceMemory::zeroed(gpu, WORKSPACE, Purpose::Step)?;
        let handle = lt::create_handle().doing("opening cuBLASLt")?;
        Ok(Self { handle, dtype, workspace, plans: HashMap::new() })
    }

    /// Issues a product.
    ///
    /// # Safety
    ///
    /// The addresses are those of matrices of this shape, in memory that lives until the product is done.
    pub unsafe fn multiply(
        &mut self,
        gpu: &Gpu,
        shape: ProductShape,
        x: u64,
        weights: u64,
        out: u64,
    ) -> Result<(), CudaError> {
        let plan = match self.plans.entry(shape) {
            Entry::Occupied(plan) => plan.into_mut(),
            Entry::Vacant(place) => place.insert(Plan::new(self.handle, self.dtype, shape)?),
        };
        let (alpha, beta) = (1.0f32, f32::from(u8::from(shape.add)));
        let at = |address: u64| address as *const c_void;
        // SAFETY: the plan's layouts are those of the shape, the operands are as the caller promises, and the scalars are
        // read during the call.
        unsafe {
            lt::matmul(
                self.handle,
                plan.product,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                at(weights),
                plan.weights,
                at(x),
                plan.x,
                at(out),
                plan.out,
                out as *mut c_void,
                plan.out,
                &raw const plan.algorithm,
                self.workspace.address() as *mut c_void,
                plan.workspace,
                gpu.raw_stream().cast(),
            )
        }
        .doing("a matrix product")
    }
}

impl Drop for Blas {
    fn drop(&mut self) {
        self.plans.clear();
        // SAFETY: the handle was made in `new` and is destroyed once. There is nobody to report an error to.
        let _ = unsafe { lt::destroy_handle(self.handle) };
    }
}

/// A planned product. cuBLASLt's matrices are column-major, so it computes `out^T = (w^T)^T x^T`.
struct Plan {
    product: sys::cublasLtMatmulDesc_t,
    weights: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace: usize,
}

impl Plan {
    fn new(
        handle: sys::cublasLtHandle_t,
        dtype: sys::cudaDataType,
        shape: ProductShape,
    ) -> Result<Self, CudaError> {
        use sys::cublasLtMatmulDescAttributes_t::{CUBLASLT_MATMUL_DESC_TRANSA, CUBLASLT_MATMUL_DESC_TRANSB};
        use sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
        let ProductShape { rows, n, k, .. } = shape;
        let float = sys::cudaDataType::CUDA_R_32F;
        let out = if shape.out_f32 { float } else { dtype };
        let what = "planning a matrix product";
        let product =
            lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, float).doing(what)?;
        let mut plan = Self {
            product,
            weights: std::ptr::null_mut(),
            x: std::ptr::null_mut(),
            out: std::ptr::null_mut(),
            algorithm: sys::cublasLtMatmulAlgo_t { data: [0; 8] },
            workspace: 0,
        };
        // The weights are transposed, x is not.
        for (attribute, value) in [(CUBLASLT_MATMUL_DESC_TRANSA, 1i32), (CUBLASLT_MATMUL_DESC_TRANSB, 0)] {
            // SAFETY: the descriptor is live, and the value has the attribute's size.
            unsafe {
                lt::set_matmul_desc_attribute(product, attribute, (&raw const value).cast(), size_of::<i32>())
            }
            .doing(what)?;
        }
        let layout = |dtype, height: usize, width: usize| {
            lt::create_matrix_layout(dtype, height as u64, width as u64, height as i64).doing(what)
        };
        plan.weights = layout(dtype, k, n)?;
        plan.x = layout(dtype, k, rows)?;
        plan.out = layout(out, n, rows)?;
        let preference = lt::create_matmul_pref().doing(what)?;
        let (limit, size) = (WORKSPACE, size_of::<usize>());
        // SAFETY: the descriptors are live, and the value has the attribute's size.
        let found = unsafe {
            let set = lt::set_matmul_pref_attribute(
                preference,
                CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const limit).cast(),
                size,
            );
            let found = set.and_then(|()| {
                lt::get_matmul_algo_heuristic(
                    handle,
                    product,
                    plan.weights,
                    plan.x,
                    plan.out,
                    plan.out,
                    preference,
                )
            });
            let _ = lt::destroy_matmul_pref(preference);
            found.doing(what)?
        };
        (plan.algorithm, plan.workspace) = (found.algo, found.workspaceSize);
        Ok(plan)
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        // SAFETY: they were made in `new` and are destroyed once. Layouts that were not made are null.
        unsafe {
            let _ = lt::destroy_matmul_desc(self.product);
            for layout in [self.weights, self.x, self.out].into_iter().filter(|layout| !layout.is_null()) {
                let _ = lt::destroy_matrix_layout(layout);
            }
        }
    }
}
