fn main() { 
    let a = std::env::args().nth(1);
    if let Some(a) = a {
        let c = std::ffi::CString::new(a).unwrap();
        #[allow(unsafe_code)]
        let r = unsafe { libc::dlopen(c.as_ptr(), libc::RTLD_NOW|libc::RTLD_GLOBAL) };
        println!("dlopen {r:?}");
    }
    println!("{}", tch::Cuda::is_available()); let a = tch::Tensor::randn([4,4],(tch::Kind::Float, tch::Device::Cpu)); println!("{}", a.mm(&a)); }
