# shellcheck shell=bash
# Sourced by bench/gpu.sh: which parts there are, in which order, at which sizes.

if [[ -n $small ]]; then
    size=(--size tiny)
    kernel_tests=(tests/engine/kernels/test_gate.py)
    cases=64
    loads=2x64
    image=(--sides 64 --steps 2 --burst 1 --idle 0 --sustained 0)
    peers=("${image[@]}" --peer diffusers)
    unseen=("${image[@]}" --unseen-length 1)
    load=(--size tiny)
    scaling=(--size tiny --modes one,sp2 --sides 64)
    offload=(-k budget)
    first_kernels=(--sides 128)
    first_step=(--cases 64)
    first_image=("${image[@]}")
    second_loads=2x64
    second_modes=sp2
    large=(--sides 128 --steps 2 --burst 1 --idle 0 --sustained 0)
else
    size=(--size real)
    kernel_tests=(tests/engine/rank/test_cuda_graphs.py tests/engine/model/test_vae_on_devices.py tests/engine/kernels)
    cases=1024,512,16x512
    loads=20x1024,16x512
    image=(--sides 1024,512 --idle 3 --sustained 5)
    peers=(--sides 1024,512 --idle 0 --sustained 0 --peer diffusers)
    unseen=(--sides 1024 --burst 1 --idle 0 --sustained 0 --unseen-length)
    load=(--size real --layers 4)
    scaling=(--size real --layers 4 --sides 1024,2048)
    offload=(-m gpu)
    first_kernels=(--sides 1024)
    first_step=(--cases 1024,256,16x512)
    first_image=(--sides 1024 --idle 1 --sustained 3)
    second_loads=20x1024
    second_modes=tp2,sp2
    large=(--sides 2048 --burst 2 --idle 1 --sustained 0)
fi

first() {
    part kernel-checks 60 kernels "${size[@]}" "${first_kernels[@]}" --check-only
    part step 110 step "${size[@]}" "${first_step[@]}" --quantization none,fp8 --profile "$traces"
    part image 65 image "${size[@]}" "${first_image[@]}" --quantization none,fp8
    tests_of_kernels 75
}

second() {
    part throughput 80 throughput "${size[@]}" --loads "$second_loads" --quantization fp8,none
    part kernels 60 kernels "${size[@]}"
    part fidelity 50 fidelity "${size[@]}"
    part shared-gpu 60 shared_gpu --modes "$second_modes"
}

everything() {
    tests_of_kernels 120
    part shared-gpu 80 shared_gpu --modes tp2,sp2,cfg,tp2xsp2
    part step 50 step "${size[@]}" --cases "$cases"
    part image 90 image "${size[@]}" "${image[@]}" --quantization none,fp8
    part kernels 60 kernels "${size[@]}"
    part throughput 90 throughput "${size[@]}" --loads "$loads"
    part fidelity 60 fidelity "${size[@]}"
    if [[ -z $no_diffusers$no_transformers ]]; then
        part peers 100 image "${size[@]}" "${peers[@]}"
    else
        skip peers "${no_diffusers:-$no_transformers} is not there (WHEELS names a folder that has its wheel)"
    fi
    part scaling 60 scaling "${scaling[@]}"
    part image-2048 60 image "${size[@]}" "${large[@]}" --quantization none,fp8
    part unseen-length 60 image "${size[@]}" "${unseen[@]}"
    if [[ -z $no_diffusers ]]; then
        part offload 40 kernel_tests "${offload[@]}" tests/engine/offload/test_offload.py
        part load 60 load "${load[@]}" --device auto --cache warm --repeats 2
    else
        skip offload "diffusers is not there (WHEELS names a folder that has its wheel)"
        skip load "diffusers is not there, which writes the checkpoint"
    fi
}

tests_of_kernels() {
    if [[ -z $no_pytest ]]; then
        part kernel-tests "$1" kernel_tests "${kernel_tests[@]}"
    else
        part kernel-tests "$1" kernels "${size[@]}" --check-only
    fi
}
