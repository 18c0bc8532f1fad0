"""What the routes for A1111's clients answer, for the OpenAPI description."""

from __future__ import annotations

from launcher.http.answers.schemas import (
    DRAWING_ERRORS,
    ENGINE_ERRORS,
    ERROR,
    TEXT,
    Responses,
    Schema,
    answer,
    flag,
    integer,
    many,
    number,
    object_schema,
    or_null,
    text,
)

_SENTENCE = "steps must be between 1 and 200, got 5000"
_ERRORS: Responses = {
    "default": {
        "description": "What is wrong, in each place where A1111's clients look for it.",
        "content": {
            "application/json": {
                "schema": object_schema(
                    {
                        "error": ERROR,
                        "detail": text("The message once more.", _SENTENCE),
                        "errors": text("The message once more.", _SENTENCE),
                        "body": text("Always empty.", ""),
                    }
                )
            }
        },
    }
}


def _answer(schema: Schema, *errors: int) -> Responses:
    return answer(schema, *errors) | _ERRORS


_WARNINGS = many(TEXT, "What was changed in the request, or ignored.")
_FREE: Schema = {"type": "object"}
TXT2IMG = _answer(
    object_schema(
        {
            "images": many({"type": "string", "contentEncoding": "base64"}, "The files, without a data: prefix."),
            "parameters": _FREE | {"description": "What was sent."},
            "info": text(
                "What was used, as JSON: seed and all_seeds, width, height, steps, guidance, infotexts and more.",
                '{"seed": 7, "all_seeds": [7]}',
            ),
            "warnings": _WARNINGS,
        }
    ),
    *DRAWING_ERRORS,
    499,
)
_STATE = object_schema(
    {
        "skipped": flag("Always false.", False),
        "interrupted": flag("Whether a request is being ended.", False),
        "stopping_generation": flag("Always false.", False),
        "job": text("What is done: txt2img, img2img, or nothing.", "txt2img"),
        "job_count": integer("How many images the requests ask for.", 2),
        "job_timestamp": text("When the oldest began.", "20260101120000"),
        "job_no": integer("How many images are done, as far as steps tell.", 0),
        "sampling_step": integer("How many steps of the next image are done.", 3),
        "sampling_steps": integer("How many steps an image has.", 8),
    }
)
PROGRESS = _answer(
    object_schema(
        {
            "progress": number("From 0, without a request, to 1.", 0.25),
            "eta_relative": number("Seconds until all is done; 0 while that is not known.", 2.5),
            "state": _STATE | {"description": "The same in detail."},
            "current_image": or_null(text("The newest preview, a JPEG.", "/9j/4AAQ…") | {"contentEncoding": "base64"}),
            "textinfo": or_null(text("The same in words.", "queued behind 3 images")),
        }
    )
)
TOLD = _answer(object_schema({"info": text("What came of it.", "1 request was interrupted")}))
OPTIONS = _answer(
    object_schema(
        {
            "sd_model_checkpoint": text("The model, by its first name.", "Krea-2-Turbo"),
            "sd_checkpoint_hash": or_null(text("Not known.", "0123456789")),
            "sd_vae": text("The checkpoint's own.", "Automatic"),
            "CLIP_stop_at_last_layers": integer("All layers are used that the model uses.", 1),
            "samples_format": text("The kind of files.", "png"),
            "samples_save": flag("Whether the server keeps pictures.", False),
            "grid_save": flag("The same of grids.", False),
            "return_grid": flag("Whether a grid comes before the images.", False),
            "enable_pnginfo": flag("Whether files say how they were made.", True),
            "live_previews_enable": flag("Whether there are previews.", True),
        }
    )
)
SET_OPTIONS = _answer(object_schema({"warnings": _WARNINGS}), 404)
MODELS = _answer(
    many(
        object_schema(
            {
                "title": text("A name of the model.", "Krea-2-Turbo"),
                "model_name": text("The same name.", "Krea-2-Turbo"),
                "hash": or_null(text("Not known.", "0123456789")),
                "sha256": or_null(text("Not known.", "0123456789")),
                "filename": text("The same name.", "Krea-2-Turbo"),
                "config": or_null(text("There is none.", "")),
            }
        ),
        "The names of the model.",
    )
)
LORAS = _answer(
    many(
        object_schema(
            {
                "name": text("What to write into a prompt, as <lora:ink:0.8>.", "ink"),
                "alias": text("The same.", "ink"),
                "path": text("Its file.", "ink.safetensors"),
                "metadata": _FREE | {"description": "Always empty."},
            }
        ),
        "The LoRAs that are loaded.",
    ),
    *ENGINE_ERRORS,
)
FIXED = _answer(
    {"anyOf": [{"type": "array", "items": _FREE}, _FREE], "description": "As A1111 answers it."},
)
PING = answer(_FREE | {"description": "Always empty."})
VERSION = answer(object_schema({"Version": text("Which server it is.", "krea2-engine 0.1.0")}))
