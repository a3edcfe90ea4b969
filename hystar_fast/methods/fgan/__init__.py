"""FGAN: retrieval between pictures and texts, or sketches, by regions and by distributions over labels.

Source: Ge et al., Fine-Grained Alignment Network for Zero-Shot Cross-Modal Retrieval, ACM TOMM 21(10), 2025.
"""
