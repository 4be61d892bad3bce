"""The nodes, one file per step of the graph. Importing this package needs neither ComfyUI nor mediapipe."""

from . import check, crop, folders, model, parse, preview, region, sample, save, synthesis, target, terms

_STEPS = (model, parse, crop, region, target, synthesis, sample, terms, check, save, preview)
_NODES = tuple(node for step in _STEPS for node in step.NODES)

NODE_CLASS_MAPPINGS = {f"FaceAnon_{node.__name__}": node for node in _NODES}
NODE_DISPLAY_NAME_MAPPINGS = {f"FaceAnon_{node.__name__}": node.TITLE for node in _NODES}
WEB_DIRECTORY = "./web"

folders.model_folders()  # so that ComfyUI lists the folder from the start
