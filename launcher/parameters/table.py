"""All parameters of other programs that are known, for every door: HTTP, Python, and the lines of a file of prompts.

docs/parameters.md has the same table. That of options of the command line is
`launcher/cli/options/other_programs.py`.
"""

from __future__ import annotations

from launcher.parameters.other_programs import OtherParameter as Other
from launcher.parameters.other_programs import (
    dbcache,
    gate,
    inverse,
    less,
    logarithm,
    loras,
    quality,
    shape,
    size,
    step_cache,
)

_LORAS = 'loaded LoRAs are chosen by `loras`, as `[{"name": …, "strength": …}]`'
_SCHEDULE = "`steps`, `sigmas` and `mu` decide the schedule"
_ENCODER = "the engine encodes prompts itself: give `prompt` and `negative_prompt`"
_REFERENCES = "pictures that only guide are not taken yet; one to be drawn over is `image`"
_FASTER = "`cache` says whether steps are saved"
_DRAWN = "images come as they were drawn"
_OPENAI, _SGLANG, _VLLM, _DIFFUSERS, _A1111 = "OpenAI", "SGLang", "vLLM-Omni", "diffusers", "A1111"
_BOTH = f"{_SGLANG}, {_VLLM}"
_HOSTED = "fal, Replicate, Together"

TABLE: tuple[Other, ...] = (
    # Ours, under other names.
    Other(("num_outputs", "num_outputs_per_prompt"), f"Replicate, {_BOTH}", "`num_images`", "num_images"),
    Other(("batch_size", "num_samples", "samples"), f"{_A1111}, Fireworks", "`num_images`", "num_images"),
    Other(("sampling_steps", "inference_steps", "num_steps"), "xDiT and others", "`steps`", "steps"),
    Other(("neg_prompt",), "LightX2V", "`negative_prompt`", "negative_prompt"),
    Other(("random_seed", "noise_seed"), "ComfyUI and others", "`seed`", "seed"),
    Other(
        ("output_quality",), f"{_SGLANG}, Replicate",
        "`output_compression`; `maximum` is 100, `high` 90, `medium` 55, `low` 35", "output_compression", read=quality,
        nothing=("default",),
    ),
    Other(("image_format", "response_image_type"), "Novita and others", "`output_format`", "output_format"),
    Other(
        ("image_size", "resolution"), "fal, SiliconFlow",
        '`size`; also `{"width": …, "height": …}`, and fal\'s names, as `square_hd`', "size", read=size,
    ),
    Other(
        ("lora", "image_loras"), f"{_VLLM}, Together", "`loras`; `scale` is the strength, and without a name `path` is",
        "loras", read=loras,
    ),
    Other(
        ("cfg_scale", "true_cfg_scale"), f"{_A1111}, {_BOTH}, {_DIFFUSERS}",
        "`guidance`, which is 1 less: 1 is off, and 4.5 is 3.5", "guidance", read=less,
    ),
    Other(
        ("cache_dit_params",), _SGLANG,
        "`cache` of method `blocks`, with these numbers; what is not among them is as in `cache`", "cache",
        read=dbcache, switch="enable_cache_dit",
    ),
    Other(
        ("enable_cache_dit",), _SGLANG,
        "`cache` `quality`, with a warning, where there are no `cache_dit_params`", "cache", read=step_cache,
        taken_as="{name} was taken for cache quality, which is ours: cache_dit_params say DBCache's own",
    ),
    Other(
        ("enable_teacache",), _SGLANG, "`cache` `quality`, with a warning, since that is ours and not TeaCache",
        "cache", read=step_cache, taken_as="{name} was taken for cache quality, which is ours and not TeaCache",
    ),
    Other(
        ("cfg_gate_step",), _SGLANG, "`guidance_until`, with `guidance_outside` `last`: the same fraction of the steps",
        "guidance_until", read=gate, nothing=(1, "1", "1.0"), besides=(("guidance_outside", "last"),),
    ),
    # What would be mistaken for something else.
    Other(
        ("cfg",), "ComfyUI, Krea's script", "give `guidance`, which is that script's cfg, and 1 less than ComfyUI's"
    ),
    Other(
        ("flow_shift", "time_shift"), _BOTH, "refused, since `mu` is its logarithm: for 3 give `mu` 1.099", "mu",
        read=logarithm,
    ),
    Other(
        ("aspect_ratio",), f"{_HOSTED}, xAI", "refused with the `size` to give, as 1360x768 for 16:9", "size",
        read=shape, nothing=("auto", "1:1"),
    ),
    Other(("megapixels",), "Replicate", "give `size`, or `width` and `height`", nothing=("1", 1)),
    Other(("n_iter", "batch_count"), _A1111, "`num_images` says how many", nothing=(1, "1")),
    Other(("seeds",), "xDiT", "give the first as `seed`: image i has it plus i"),
    Other(("prompts",), "several", "give one `prompt`; several requests at once share the steps"),
    Other(("timesteps",), _DIFFUSERS, _SCHEDULE),
    Other(("latents",), _DIFFUSERS, "noise is drawn from the `seed`"),
    Other(
        ("subseed", "subseed_strength", "seed_resize_from_h", "seed_resize_from_w"), _A1111,
        "noise is drawn from the `seed` alone", nothing=(0, -1),
    ),
    Other(
        ("prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds", "negative_prompt_embeds_mask"), _DIFFUSERS,
        _ENCODER,
    ),
    Other(("prompt_2", "prompt_3", "negative_prompt_2", "negative_prompt_3"), _DIFFUSERS, _ENCODER),
    Other(("attention_kwargs", "joint_attention_kwargs", "cross_attention_kwargs"), _DIFFUSERS, _LORAS),
    Other(
        ("lora_path", "lora_paths", "lora_weights", "lora_url", "lora_scale", "lora_scales", "lora_name", "hf_lora"),
        f"{_SGLANG}, Replicate", _LORAS,
    ),
    Other(
        ("extra_params", "extra_args", "diffusers_kwargs"), _BOTH, "give what is in it beside the `prompt`, by itself"
    ),
    # Pictures.
    Other(
        ("images", "image_url", "image_urls", "image_b64", "image_base64", "image_path"), "many",
        "`image`, which is one", "image",
    ),
    Other(("input_image", "input_images", "source_image"), "many", "`image`, which is one", "image"),
    Other(("init_image", "init_images"), f"{_A1111}, Stability and others", "`image`, which is one", "image"),
    Other(("mask_image", "mask_url", "mask_b64"), f"{_DIFFUSERS}, {_HOSTED}", "`mask`; white is repainted", "mask"),
    Other(
        ("prompt_strength", "denoising_strength", "denoise"), f"Replicate, {_A1111}, ComfyUI", "`strength`", "strength"
    ),
    Other(
        ("image_strength", "init_image_strength"), "Stability, MLX",
        "refused, since `strength` is 1 less it: for 0.35 give `strength` 0.65", "strength", read=inverse,
    ),
    Other(("padding_mask_crop",), _DIFFUSERS, "`mask_crop`", "mask_crop"),
    Other(("mask_blur",), _A1111, "`mask_feather`", "mask_feather"),
    Other(
        ("inpaint_full_res", "inpaint_full_res_padding"), _A1111, "give `mask_crop`, pixels around the `mask`",
        nothing=(0, 32),
    ),
    Other(
        ("inpainting_mask_invert", "invert_mask"), _A1111, "what is white in the `mask` is repainted", nothing=(0, "0"),
    ),
    Other(
        ("reference_image", "reference_images", "input_reference", "redux_image", "markup"), "many", _REFERENCES,
    ),
    Other(
        ("control_image", "controlnet", "controlnets", "ip_adapter_image", "ip_adapter"), "many", _REFERENCES,
    ),
    Other(
        ("num_frames", "frame_count", "fps", "frame_duration_ms", "seconds"), f"{_OPENAI}, {_BOTH}",
        "there are images, and no videos", nothing=(1, "1"),
    ),
    # What every client of OpenAI's sends by habit.
    Other(("quality",), _OPENAI, "`steps` decides", ignored=True, quiet=True),
    Other(("style", "complexity"), _OPENAI, "it changes nothing", ignored=True, quiet=True),
    Other(("background",), _OPENAI, "images are opaque", ignored=True, nothing=("auto", "opaque")),
    Other(
        ("input_fidelity",), _OPENAI, "`strength` says how much of the picture is drawn anew", ignored=True,
        nothing=("low",),
    ),
    # What changes nothing here.
    Other(
        ("sampler", "sampler_name", "sampler_index", "scheduler", "scheduler_name", "sample_method"),
        f"{_A1111}, ComfyUI, Replicate", "there is one sampler, Euler's, on the checkpoint's schedule", ignored=True,
        nothing=("euler", "automatic"),
    ),
    Other(
        ("distilled_cfg_scale", "embedded_guidance_scale", "guidance_scale_2", "guidance_rescale"),
        f"Forge, {_BOTH}, {_DIFFUSERS}", "`guidance` is the one scale", ignored=True, nothing=(0,),
    ),
    Other(
        ("eta", "clip_skip", "s_churn", "s_tmin", "s_tmax", "s_noise"), _A1111, "it means nothing to this model",
        ignored=True, nothing=(0,),
    ),
    Other(("generator_device",), _BOTH, "noise is drawn on the CPU", ignored=True, nothing=("cpu",)),
    Other(("skip_softmax_params", "dpcache_budget"), _SGLANG, _FASTER, ignored=True),
    Other(("go_fast", "acceleration", "speed_mode"), _HOSTED, _FASTER, ignored=True, nothing=("regular",)),
    Other(
        ("attention_backend_override",), _SGLANG, "`krea2 serve --attention` decides", ignored=True, nothing=("auto",)
    ),
    Other(("vae_use_tiling", "vae_use_slicing"), _VLLM, "`krea2 serve --vae-memory` decides", ignored=True),
    Other(
        ("max_sequence_length",), f"{_DIFFUSERS}, {_SGLANG}", "prompts may have 507 tokens, and are cut there",
        ignored=True, nothing=(512, "512"),
    ),
    Other(
        ("enable_safety_checker", "safety_checker", "safety_tolerance"), _HOSTED,
        "content filters are those of the server",
        ignored=True,
    ),
    Other(("disable_safety_checker",), _HOSTED, "content filters are those of the server", ignored=True, quiet=True),
    Other(
        ("enhance_prompt", "expand_prompt", "enable_prompt_expansion", "prompt_upsampling", "prompt_extend",
         "prompt_enhancement"), f"{_HOSTED}, {_SGLANG}, SiliconFlow", "prompts are drawn as they are", ignored=True,
    ),
    Other(
        ("system_prompt", "use_system_prompt", "bot_task"), _VLLM, "prompts are drawn as they are", ignored=True
    ),
    Other(
        ("resize_mode", "inpainting_fill", "image_cfg_scale"), _A1111,
        "the picture is covered and cropped at its centre", ignored=True, nothing=(0, 1),
    ),
    Other(("watermark", "add_watermark", "apply_watermark"), "several", "none is drawn", ignored=True),
    Other(
        ("enable_upscaling", "upscaling_scale", "upscaling_model_path", "progressive_mode", "progressive_levels",
         "progressive_delta", "layers", "infer_align_image_size"), _BOTH, _DRAWN, ignored=True,
    ),
    Other(("enable_hr", "hr_scale", "hr_upscaler", "restore_faces", "tiling"), _A1111, _DRAWN, ignored=True),
    Other(
        ("styles", "style_preset", "style_type"), f"{_A1111}, Stability", "the prompt says the style", ignored=True,
        nothing=("auto",),
    ),
    Other(
        ("override_settings", "script_name", "script_args", "alwayson_scripts"), _A1111, "there are no scripts",
        ignored=True,
    ),
    Other(
        ("save_images", "send_images", "do_not_save_samples", "do_not_save_grid", "save_output"),
        f"{_A1111}, {_SGLANG}", "the answer has the images", ignored=True, quiet=True,
    ),
    Other(("drop_params",), "LiteLLM's proxy", "it is about LiteLLM itself", ignored=True, quiet=True),
    Other(("sync_mode", "webhook", "webhook_url", "callback_url"), _HOSTED, "the answer has the images", ignored=True),
    Other(
        ("rollout", "rollout_sde_type", "perf_dump_path", "profile", "debug", "task_type"), _SGLANG,
        "it changes nothing; `explain` tells where the time went", ignored=True, nothing=("sde",),
    ),
)  # fmt: skip
OTHERS = {name: other for other in TABLE for name in other.names}
